//! `soda merge`

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use soda_models::pipeline::LoadOptions;
use soda_pipeline::AdapterFile;

use crate::adapter_loading::load_with_adapters;
use crate::args::{DeviceArg, MergedArgs};
use crate::base_model::{find_base, warn_of_encoding};
use crate::progress::print_result;
use crate::usage::{require, require_folder_name};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  soda merge --base models/toy --adapter runs/mug-1/adapter.safetensors --out models/toy-mug
  soda merge --base models/toy --subject mug.safetensors --style chalk.safetensors \\
      --weights 0.8,0.6 --out models/chalk-mug
  soda merge --base models/toy --subject mug.safetensors --style chalk.safetensors \\
      --mode geodesic --restore 1 --out models/chalk-mug

residual adds the weighted changes of any two adapters. geodesic and compose stay on the manifold of rotations
and need two adapters of one method. geodesic is their weighted mean; compose applies one after the other.

Then, in Python: StableDiffusionPipeline.from_pretrained(\"models/toy-mug\")")]
pub(crate) struct MergeArgs {
    /// The base model: a diffusers directory, or a name on a hub
    #[arg(long, value_name = "DIR|NAME")]
    pub(crate) base: PathBuf,
    #[command(flatten)]
    pub(crate) merged: MergedArgs,
    /// The directory to write; it must not exist
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

pub(crate) fn run(args: MergeArgs) -> Result<()> {
    args.merged.check()?;
    let any = args.merged.adapter.is_some() || args.merged.subject.is_some();
    require(any, "give --adapter, or --subject and --style")?;
    let folder = "merge writes a directory: give --out without a file's suffix; `soda convert` makes a single file of it";
    require_folder_name(&args.out, folder)?;
    ensure!(!args.out.exists(), "{} exists; merge writes a new directory", args.out.display());
    if let Some(adapter) = &args.merged.adapter {
        let adapter: AdapterFile = AdapterFile::read(adapter)?;
        adapter.check_has_weights()?;
    }
    let base = find_base(&args.base, None)?;
    let device = args.device.device.open()?;
    let pipeline = load_with_adapters(&args.merged, &base, LoadOptions::default(), &device)?;
    let pipeline = pipeline.context("give --adapter, or --subject and --style")?;
    pipeline.save(&args.out)?;
    warn_of_encoding(&pipeline, &args.out);
    print_result(&args.out.display().to_string());
    Ok(())
}
