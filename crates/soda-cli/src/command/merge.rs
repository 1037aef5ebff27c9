//! `soda merge`

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Args as ClapArgs;

use crate::args::DeviceArg;
use crate::base::find;
use crate::command::fold::FoldArgs;
use crate::progress::say_result;

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  soda merge --base models/toy --adapter runs/mug-1/adapter.safetensors --out models/toy-mug
  soda merge --base models/toy --subject mug.safetensors --style chalk.safetensors \\
      --weights 0.8,0.6 --out models/chalk-mug
  soda merge --base models/toy --subject mug.safetensors --style chalk.safetensors \\
      --mode geodesic --restore 1 --out models/chalk-mug

residual adds the weighted changes and takes any two adapters. geodesic and compose stay on the rotations'
manifold and need two of one method: geodesic is their weighted mean, compose applies one after the other.

Then, in Python: StableDiffusionPipeline.from_pretrained(\"models/toy-mug\")")]
pub(crate) struct MergeArgs {
    /// The base model: a diffusers directory, or a name on a hub
    #[arg(long, value_name = "DIR|NAME")]
    pub(crate) base: PathBuf,
    #[command(flatten)]
    pub(crate) fold: FoldArgs,
    /// The directory to write; it must not exist
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

pub(crate) fn run(args: MergeArgs) -> Result<()> {
    ensure!(!args.out.exists(), "{} exists; merge writes a new directory", args.out.display());
    let base = find(&args.base, None)?;
    let device = args.device.device.open()?;
    let pipeline = args.fold.load(&base, &device)?;
    pipeline.context("give --adapter, or --subject and --style")?.save(&args.out)?;
    say_result(&args.out.display().to_string());
    Ok(())
}
