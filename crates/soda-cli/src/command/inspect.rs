//! `soda inspect`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use soda_models::input_file::{SizeLimit, read_text};
use soda_models::weights::SafetensorsReader;
use soda_pipeline::{AdapterFile, FormatError, PipelineError};

use crate::base_model::find_base;
use crate::progress::print_result;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soda inspect runs/mug-1/adapter.safetensors
  soda inspect models/toy")]
pub(crate) struct InspectArgs {
    /// An adapter file, any safetensors file, a diffusers directory, or a model's name on a hub
    pub(crate) path: PathBuf,
}

pub(crate) fn run(args: InspectArgs) -> Result<()> {
    let path = &find_base(&args.path, None)?;
    if path.is_dir() {
        return print_directory(path);
    }
    match <AdapterFile>::read(path) {
        Ok(file) => print_adapter(&file),
        Err(PipelineError::Format(FormatError::NotAnAdapter { .. })) => print_tensors(path)?,
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn print_adapter(file: &AdapterFile) {
    let header = &file.header;
    print_result(&format!("SODA adapter: {}", file.summary()));
    let fields = [
        ("base", json!(header.base)),
        ("trigger", json!(header.trigger)),
        ("training", header.training.clone()),
    ];
    let recipes =
        file.adapters.iter().map(|(component, adapter)| (component.name(), json!(adapter.recipe)));
    for (key, value) in recipes.chain(fields) {
        print_field(1, key, &value);
    }
    for (width, sizes) in file.factor_sizes() {
        let sizes = sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
        print_result(&format!("  rotations of width {width}: {sizes}"));
    }
    print_result(&format!(
        "  {} trained parameters in {} tensors:",
        file.num_params(),
        file.num_tensors()
    ));
    for (key, data) in file.tensors() {
        print_result(&format!("  {key} {:?}", data.shape().as_slice()));
    }
}

/// The most entries that are printed of a list. An imported adapter has a rank and a target for each layer.
const MAX_ENTRIES: usize = 16;

/// Prints `key: value`, with nested fields indented below.
fn print_field(depth: usize, key: &str, value: &Value) {
    let indent = "  ".repeat(depth);
    let many = |count: usize| print_result(&format!("{indent}  ... {count} in all"));
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            print_result(&format!("{indent}{key}:"));
            for (key, value) in fields.iter().take(MAX_ENTRIES) {
                print_field(depth + 1, key, value);
            }
            if fields.len() > MAX_ENTRIES {
                many(fields.len());
            }
        }
        Value::Array(items) if items.len() > MAX_ENTRIES => {
            print_result(&format!("{indent}{key}: {} ...", json!(items[..3])));
            many(items.len());
        }
        Value::String(text) => print_result(&format!("{indent}{key}: {text}")),
        other => print_result(&format!("{indent}{key}: {other}")),
    }
}

/// Prints the metadata and the tensors of a safetensors file.
fn print_tensors(path: &Path) -> Result<()> {
    let file = SafetensorsReader::open(path)?;
    for (key, value) in file.metadata() {
        print_result(&format!("  {key} = {value:?}"));
    }
    for (key, dtype, shape) in file.tensors() {
        print_result(&format!("  {key} {dtype} {}", json!(shape)));
    }
    Ok(())
}

/// Prints the parts of a diffusers directory with their classes, tensors and sizes.
fn print_directory(path: &Path) -> Result<()> {
    let index = path.join("model_index.json");
    if !index.is_file() {
        bail!("{} has no model_index.json, so it is no diffusers directory", path.display());
    }
    let index = read_json(&index)?;
    print_result(&format!("{} {}", path.display(), index["_class_name"].as_str().unwrap_or("?")));
    let mut entries: Vec<_> = std::fs::read_dir(path)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|p| p.is_dir())
        .collect();
    entries.sort();
    for part in entries {
        let name = part.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let class = index[&name][1].as_str().unwrap_or("not in the index").to_owned();
        let line = format!("  {name:<14} {class}");
        let mut files: Vec<_> = std::fs::read_dir(&part)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
            .collect();
        files.sort();
        match &files[..] {
            [file] => print_result(&format!("{line}{}", count_values(file)?)),
            files => {
                print_result(&line);
                for file in files {
                    let name = file.file_name().unwrap_or_default().to_string_lossy();
                    print_result(&format!("    {name}{}", count_values(file)?));
                }
            }
        }
    }
    Ok(())
}

/// Counts the tensors of a file, and their values by dtype.
fn count_values(path: &Path) -> Result<String> {
    let file = SafetensorsReader::open(path)?;
    let mut values: BTreeMap<String, usize> = BTreeMap::new();
    for (_, dtype, shape) in file.tensors() {
        // The header was checked: the products fit, and their sum is at most the size of the file.
        *values.entry(dtype.to_string()).or_default() += shape.iter().product::<usize>();
    }
    let count = file.tensors().count();
    let values: Vec<_> = values.iter().map(|(dtype, n)| format!("{n} {dtype}")).collect();
    Ok(format!(": {count} tensors, {}", values.join(" + ")))
}

fn read_json(path: &Path) -> Result<Value> {
    let text = read_text(path, SizeLimit::SETTINGS)
        .with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
}
