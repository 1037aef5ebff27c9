//! One verb per file.

pub(crate) mod bench;
pub(crate) mod compare;
pub(crate) mod config;
pub(crate) mod convert;
pub(crate) mod evaluate;
pub(crate) mod export;
pub(crate) mod fold;
pub(crate) mod generate;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod settings;
pub(crate) mod train;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use burn::module::Module as _;
use burn::tensor::Device;
use soda_adapters::{AdapterFile, AnyAdapter, Method as _, Plan, SvdCache};
use soda_models::pipeline::{LoadOptions, Pipeline};
use soda_train::Event;

use crate::progress::Progress;

/// The base, with `strength` of an adapter folded in.
fn load_merged(
    base: &Path,
    options: &LoadOptions,
    adapter: &Path,
    strength: f64,
    cache: Option<&SvdCache>,
    device: &Device,
) -> Result<Pipeline> {
    let (mut pipeline, _, plan) = load_plan(base, options, adapter, strength, cache, device)?;
    pipeline.unet = plan.attach(pipeline.unet.clone()).materialize();
    Ok(pipeline)
}

/// The base, an adapter file, and the adapter at `strength`, ready to be attached.
fn load_plan(
    base: &Path,
    options: &LoadOptions,
    adapter: &Path,
    strength: f64,
    cache: Option<&SvdCache>,
    device: &Device,
) -> Result<(Pipeline, AdapterFile, Plan<AnyAdapter>)> {
    ensure!(strength.is_finite(), "--strength must be a finite number");
    let file: AdapterFile = AdapterFile::read(adapter)?;
    let pipeline = Pipeline::load_with(base, options, device)?;
    let plan = plan(&file, adapter, &pipeline, base, cache)?.at_strength(strength)?;
    Ok((pipeline, file, plan))
}

/// An adapter on a base, by their names; says what it found.
fn plan(
    file: &AdapterFile,
    adapter: &Path,
    pipeline: &Pipeline,
    base: &Path,
    cache: Option<&SvdCache>,
) -> Result<Plan<AnyAdapter>> {
    let mut progress = Progress::default();
    let mut decomposed = |done, total| {
        if !progress.is_shown() {
            progress.show(Event::Stage { name: "decomposing" });
        }
        progress.show(Event::Progress { done, total, loss: None });
    };
    let plan = file
        .plan_with(&pipeline.unet, cache, &mut decomposed)
        .with_context(|| format!("{} does not fit {}", adapter.display(), base.display()))?;
    progress.finish();
    progress.say(&format!(
        "{}: {} on {} weights of the UNet; all {} tensors matched",
        adapter.display(),
        file.header.method.name(),
        plan.paths().len(),
        file.tensors.len()
    ));
    Ok(plan)
}
