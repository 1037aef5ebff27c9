//! `soda merge`

use std::path::{Path, PathBuf};

use crate::args::{CacheArg, DeviceArg};
use anyhow::{Result, bail, ensure};
use burn::module::Module as _;
use burn::tensor::Device;
use clap::Args as ClapArgs;
use soda_adapters::merge::{Combine, combine};
use soda_adapters::{AdapterFile, attach_all};
use soda_models::pipeline::{LoadOptions, Pipeline};

use crate::base::find;
use crate::command::{load_merged, plan};
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
    /// The adapter file
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "subject",
        conflicts_with = "subject"
    )]
    pub(crate) adapter: Option<PathBuf>,
    /// How much of the adapter: 0 is the base, 1 is what was trained
    #[arg(long, default_value_t = 1.0, conflicts_with = "subject")]
    pub(crate) strength: f64,
    /// The first of two adapter files to merge
    #[arg(long, value_name = "FILE", requires = "style")]
    pub(crate) subject: Option<PathBuf>,
    /// The second
    #[arg(long, value_name = "FILE", requires = "subject")]
    pub(crate) style: Option<PathBuf>,
    /// How much of the subject and of the style
    #[arg(long, value_name = "A,B", value_delimiter = ',', default_values_t = [1.0, 1.0])]
    pub(crate) weights: Vec<f64>,
    /// How the two become one
    #[arg(long, value_enum, default_value_t)]
    pub(crate) mode: MergeMode,
    /// Of geodesic: give the mean the turn that its parts lose by cancelling, from 0 (none) to 1 (all)
    #[arg(long, default_value_t = 0.0)]
    pub(crate) restore: f64,
    /// The directory to write; it must not exist
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) cache: CacheArg,
    #[command(flatten)]
    pub(crate) device: DeviceArg,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum MergeMode {
    /// W0 + a (W1 - W0) + b (W2 - W0)
    #[default]
    Residual,
    /// exp(a log R1 + b log R2)
    Geodesic,
    /// R1^a R2^b
    Compose,
}

pub(crate) fn run(mut args: MergeArgs) -> Result<()> {
    ensure!(!args.out.exists(), "{} exists; merge writes a new directory", args.out.display());
    args.base = find(&args.base, None)?;
    let device = args.device.device.open()?;
    let pipeline = match (&args.adapter, &args.subject, &args.style) {
        (Some(adapter), _, _) => {
            let (options, cache) = (LoadOptions::default(), args.cache.open());
            load_merged(&args.base, &options, adapter, args.strength, cache.as_ref(), &device)?
        }
        (None, Some(subject), Some(style)) => two(&args, subject, style, &device)?,
        (None, _, _) => bail!("give --adapter, or --subject and --style"),
    };
    pipeline.save(&args.out)?;
    say_result(&args.out.display().to_string());
    Ok(())
}

/// The base with two adapters folded in.
fn two(args: &MergeArgs, subject: &Path, style: &Path, device: &Device) -> Result<Pipeline> {
    let &[first, second] = args.weights.as_slice() else { bail!("--weights takes two numbers") };
    ensure!(first.is_finite() && second.is_finite(), "--weights must be finite numbers");
    ensure!((0.0..=1.0).contains(&args.restore), "--restore must be from 0 to 1");
    let (subject_file, style_file) = (<AdapterFile>::read(subject)?, <AdapterFile>::read(style)?);
    let mut pipeline = Pipeline::load(&args.base, device)?;
    let cache = args.cache.open();
    let plans = [
        (plan(&subject_file, subject, &pipeline, &args.base, cache.as_ref())?, first),
        (plan(&style_file, style, &pipeline, &args.base, cache.as_ref())?, second),
    ];
    let unet = pipeline.unet.clone();
    pipeline.unet = match args.mode {
        MergeMode::Residual => attach_all(plans, unet),
        MergeMode::Geodesic => {
            combine(plans, Combine::Geodesic { restore: args.restore })?.attach(unet)
        }
        MergeMode::Compose => combine(plans, Combine::Compose)?.attach(unet),
    }
    .materialize();
    Ok(pipeline)
}
