//! `soda merge`

use std::path::Path;

use anyhow::{Result, bail, ensure};
use burn::module::Module as _;
use burn::tensor::Device;
use soda_adapters::merge::{Combine, combine};
use soda_adapters::{AdapterFile, attach_all};
use soda_models::pipeline::{LoadOptions, Pipeline};

use crate::args::{MergeArgs, MergeMode};
use crate::command::{load_merged, plan};
use crate::progress::say_result;

pub(crate) fn run(args: MergeArgs) -> Result<()> {
    ensure!(!args.out.exists(), "{} exists; merge writes a new directory", args.out.display());
    let device = args.device.device.open()?;
    let pipeline = match (&args.adapter, &args.subject, &args.style) {
        (Some(adapter), _, _) => {
            load_merged(&args.base, &LoadOptions::default(), adapter, args.strength, &device)?
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
    let plans = [
        (plan(&subject_file, subject, &pipeline, &args.base)?, first),
        (plan(&style_file, style, &pipeline, &args.base)?, second),
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
