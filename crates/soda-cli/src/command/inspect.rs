//! `soda inspect`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use soda_models::input_file::{SizeLimit, read_text};
use soda_models::weights::SafetensorsReader;
use soda_pipeline::interop::{Description, FileKind, describe};
use soda_pipeline::{AdapterFile, Component, FormatError, PipelineError, counted};
use soda_train::RunFolder;

use crate::base_model::find_base;
use crate::progress::print_result;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soda inspect runs/mug-1/adapter.safetensors
  soda inspect downloads/some-lora.safetensors
  soda inspect models/toy

Of a file of another tool it says what it is, for which family of models, which words call it, and which tools
load it.")]
pub(crate) struct InspectArgs {
    /// An adapter file, any safetensors file, a diffusers or PEFT directory, or a model's name on a hub
    pub(crate) path: PathBuf,
}

pub(crate) fn run(args: InspectArgs) -> Result<()> {
    let path = &find_base(&args.path, None)?;
    if path.is_dir() {
        return print_directory(path);
    }
    match <AdapterFile>::read(path) {
        Ok(file) => print_adapter(&file),
        Err(PipelineError::Format(
            FormatError::NotAnAdapter { .. } | FormatError::Metadata { .. },
        )) => print_file(path)?,
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
        "  {} in {}:",
        counted(file.num_params(), "trained parameter"),
        counted(file.num_tensors(), "tensor")
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

/// The most characters that are printed of a value of the metadata. Training tools write whole tables.
const MAX_VALUE: usize = 200;

/// Prints what a safetensors file of another tool is, its metadata, and its tensors.
fn print_file(path: &Path) -> Result<()> {
    print_description(&describe(path)?);
    let file = SafetensorsReader::open(path)?;
    for (key, value) in file.metadata() {
        let start: String = value.chars().take(MAX_VALUE).collect();
        let rest = value.chars().count().saturating_sub(MAX_VALUE);
        let rest = if rest > 0 {
            format!(" ... {} more", counted(rest, "character"))
        } else {
            String::new()
        };
        print_result(&format!("  {key} = {start:?}{rest}"));
    }
    for (key, dtype, shape) in file.tensors() {
        print_result(&format!("  {key} {dtype} {}", json!(shape)));
    }
    Ok(())
}

fn print_description(description: &Description) {
    let what = match &description.kind {
        FileKind::Adapter { methods, names, .. } => {
            format!("{} adapter in the names of {}", methods.join(", "), names.tool())
        }
        FileKind::Embedding => "embedding (Textual Inversion)".to_owned(),
        FileKind::Checkpoint => "single-file checkpoint".to_owned(),
        FileKind::Network(network) => format!("weights of one network: {network}"),
        FileKind::Unknown => "safetensors file of an unknown kind".to_owned(),
    };
    let family = description.family.map(|family| format!(", for {family}")).unwrap_or_default();
    print_result(&format!("{what}{family}"));
    if let FileKind::Adapter { layers, ranks, alphas, .. } = &description.kind {
        for (component, count) in layers {
            let network = component.map_or("a network without a name".to_owned(), |component| {
                format!("the {component}")
            });
            print_result(&format!("  {} of {network}", counted(*count, "layer")));
        }
        print_range("rank", *ranks);
        print_range("alpha", *alphas);
    }
    if !description.words.is_empty() {
        let words = description.words.iter().take(MAX_ENTRIES);
        let words: Vec<String> = words.map(|word| word.chars().take(MAX_VALUE).collect()).collect();
        let all = description.words.len();
        let more = if all > MAX_ENTRIES { format!(" ... {all} in all") } else { String::new() };
        print_result(&format!("  words: {}{more}", words.join(", ")));
    }
    let readers = description.readers();
    if !readers.is_empty() {
        print_result(&format!("  loaded by: {}, and by soda import", readers.join(", ")));
    }
}

fn print_range<T: std::fmt::Display + PartialEq>(name: &str, range: Option<(T, T)>) {
    match range {
        Some((least, most)) if least == most => print_result(&format!("  {name}: {least}")),
        Some((least, most)) => print_result(&format!("  {name}: {least} to {most}")),
        None => {}
    }
}

/// Prints the parts of a diffusers directory with their classes, tensors and sizes.
fn print_directory(path: &Path) -> Result<()> {
    let index = path.join("model_index.json");
    if !index.is_file() && print_peft_directory(path)? {
        return Ok(());
    }
    if !index.is_file() {
        let adapter = path.join(RunFolder::ADAPTER);
        if adapter.is_file() {
            bail!("{} is the folder of a run: inspect {}", path.display(), adapter.display());
        }
        bail!(
            "{} has neither model_index.json nor adapter_config.json: give a directory of diffusers or PEFT, \
             or a safetensors file",
            path.display()
        );
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

/// Prints the adapters of a PEFT directory, which is for one network or has a directory for each. Returns
/// whether it is one.
fn print_peft_directory(path: &Path) -> Result<bool> {
    let networks = Component::ALL.map(|component| path.join(component.name()));
    let is_adapter = |folder: &&PathBuf| folder.join("adapter_config.json").is_file();
    let folders = std::iter::once(path.to_owned()).chain(networks).collect::<Vec<_>>();
    let folders: Vec<_> = folders.iter().filter(is_adapter).collect();
    for folder in &folders {
        let config = read_json(&folder.join("adapter_config.json"))?;
        let value = |field: &str| config.get(field).filter(|value| !value.is_null()).cloned();
        let method = value("peft_type").and_then(|name| Some(name.as_str()?.to_owned()));
        let (folder_name, method) = (folder.display(), method.unwrap_or_else(|| "?".to_owned()));
        print_result(&format!("{folder_name}: PEFT directory, {method}"));
        for field in ["base_model_name_or_path", "r", "lora_alpha", "use_dora", "target_modules"] {
            if let Some(value) = value(field) {
                print_field(1, field, &value);
            }
        }
        let tensors = folder.join("adapter_model.safetensors");
        if tensors.is_file() {
            print_description(&describe(&tensors)?);
        }
    }
    Ok(!folders.is_empty())
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
    Ok(format!(": {}, {}", counted(count, "tensor"), values.join(" + ")))
}

fn read_json(path: &Path) -> Result<Value> {
    let text = read_text(path, SizeLimit::SETTINGS)
        .with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
}
