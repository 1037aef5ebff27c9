//! One verb per file.

pub(crate) mod convert;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod train;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use burn::module::Module as _;
use burn::tensor::Device;
use soda_adapters::AdapterFile;
use soda_adapters::soda::SodaConfig;
use soda_models::pipeline::{LoadOptions, Pipeline};

/// The base, with `strength` of an adapter folded in.
fn load_merged(
    base: &Path,
    options: &LoadOptions,
    adapter: &Path,
    strength: f64,
    device: &Device,
) -> Result<Pipeline> {
    ensure!(strength.is_finite(), "--strength must be a finite number");
    let file = AdapterFile::read(adapter)?.at_strength::<SodaConfig>(strength)?;
    let mut pipeline = Pipeline::load_with(base, options, device)?;
    let adapted = file
        .attach::<SodaConfig, _>(pipeline.unet.clone())
        .with_context(|| format!("{} does not fit {}", adapter.display(), base.display()))?;
    pipeline.unet = adapted.materialize();
    Ok(pipeline)
}
