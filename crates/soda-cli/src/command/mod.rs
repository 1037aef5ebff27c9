//! One verb per file.

pub(crate) mod bench;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod train;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use burn::module::Module as _;
use burn::tensor::Device;
use soda_adapters::AdapterFile;
use soda_models::pipeline::Pipeline;

/// The base with `strength` of an adapter folded in.
fn load_merged(base: &Path, adapter: &Path, strength: f64, device: &Device) -> Result<Pipeline> {
    ensure!(strength.is_finite(), "--strength must be a finite number");
    let file: AdapterFile = AdapterFile::read(adapter)?;
    let mut pipeline = Pipeline::load(base, device)?;
    let plan = file
        .plan(&pipeline.unet)
        .with_context(|| format!("{} does not fit {}", adapter.display(), base.display()))?;
    pipeline.unet = plan.at_strength(strength)?.attach(pipeline.unet.clone()).materialize();
    Ok(pipeline)
}
