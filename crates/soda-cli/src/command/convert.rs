//! `soda convert`

use std::path::{Path, PathBuf};

use anyhow::{Error, Result, anyhow, ensure};
use clap::Args;
use soda_models::pipeline::{LoadOptions, Pipeline};
use soda_models::{ModelError, WeightsError};
use soda_pipeline::AdapterFile;
use soda_pipeline::interop::{FileKind, describe};

use crate::base_model::{find_base, print_warnings};
use crate::device::{Precision, host};
use crate::progress::{Progress, print_result};
use crate::usage::{UsageError, has_suffix, require, require_safetensors_name};
use soda_train::Event;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soda convert --base models/sd15 --out sd15.safetensors --dtype f16
  soda convert --base sd15.safetensors --config models/sd15 --out models/sd15-copy
  soda convert --base models/sdxl --variant fp16 --out models/sdxl-f32
  soda convert --base flux-2-klein-base-4b.safetensors --config models/klein --out models/mine
  soda convert --base z_image_bf16.safetensors --config models/z-image --dtype bf16 --out models/mine

A single file has no configs and no tokenizer. Reading one needs a directory that has them (--config).

A single file of FLUX.2 or Z-Image is the transformer alone, in the names of the original code and of ComfyUI. The
directory also gives the text encoder and the autoencoder.")]
pub(crate) struct ConvertArgs {
    /// The model: a diffusers directory, a name on a hub, or a single .safetensors file with the original
    /// key names
    #[arg(long, value_name = "DIR|NAME|FILE")]
    base: PathBuf,
    /// A diffusers directory with the configs and tokenizers of a single file; for one of FLUX.2 or
    /// Z-Image, with the text encoder and the autoencoder too
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    /// What to write: a single file if it ends with .safetensors, otherwise a diffusers directory
    #[arg(long, value_name = "DIR|FILE")]
    out: PathBuf,
    /// Precision of the weights that are written
    #[arg(long, value_enum, default_value_t)]
    dtype: Precision,
    /// Variant of the directory's files, such as fp16
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    variant: Option<String>,
}

pub(crate) fn run(args: ConvertArgs) -> Result<()> {
    require_safetensors_name(&args.out)?;
    ensure!(!args.out.exists(), "{} exists; give another --out or remove it", args.out.display());
    // The weights are only read and written, which needs no GPU.
    let device = host();
    let mut progress = Progress::default();
    let base = find_base(&args.base, args.variant.as_deref())?;
    progress.show(Event::Stage { name: "reading" });
    let dtype = args.dtype.into();
    let pipeline = if base.is_file() {
        let missing = || UsageError::new("a single file has no tokenizer: give --config DIR");
        let config = args.config.ok_or_else(missing)?;
        Pipeline::load_single_file(&base, &config, dtype, &device)
            .map_err(|error| refusal_of_file(&base, error))?
    } else {
        require(args.config.is_none(), "--config is for a single file; a directory has its own")?;
        let options = LoadOptions { dtype, variant: args.variant, ..LoadOptions::default() };
        Pipeline::load_with(&base, &options, &device)?
    };
    print_warnings(&pipeline, &progress);
    progress.show(Event::Stage { name: "writing" });
    if has_suffix(&args.out, "safetensors") {
        pipeline.save_single_file(&args.out, dtype)?;
    } else {
        pipeline.save_as(&args.out, dtype)?;
    }
    progress.finish();
    print_result(&args.out.display().to_string());
    Ok(())
}

/// Why a single file cannot be read as a model: an adapter has the suffix of one.
fn refusal_of_file(file: &Path, error: ModelError) -> Error {
    let is_of_another_tool = || {
        describe(file).is_ok_and(|description| {
            matches!(description.kind, FileKind::Adapter { .. } | FileKind::Embedding)
        })
    };
    let is_mismatch = matches!(error, ModelError::Weights(WeightsError::Mismatch { .. }));
    if !is_mismatch || !(<AdapterFile>::read(file).is_ok() || is_of_another_tool()) {
        return error.into();
    }
    anyhow!(
        "{} is an adapter, not a model: `soda merge` writes a model with it, and `soda import` reads those of \
         other tools",
        file.display()
    )
}
