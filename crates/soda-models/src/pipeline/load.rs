//! Loading a directory in diffusers' layout.

use std::path::Path;

use burn::tensor::Device;
use serde_json::{Map, Value};
use tracing::info_span;

use super::families::{Flux2KleinConfigs, StableDiffusionConfigs, ZImageConfigs};
use super::family::{Configs, DIFFUSERS, Family, Found, LoadOptions, LoadedNetworks};
use super::family_name::{FamilyName, model_index};
use super::load_warning::LoadWarning;
use super::model::Pipeline;
use crate::error::ModelError;
use crate::weights::{self, Checkpoint, WeightPrecision};

/// The autoencoder's weights that are f32 in every dtype.
const STATISTICS: &[&str] = &["bn.running_mean", "bn.running_var"];

impl Pipeline {
    /// Loads a directory in diffusers' layout, as f32.
    ///
    /// # Errors
    ///
    /// [`ModelError`], which names the file or the field, if a part is missing, broken or not supported, or
    /// if parts do not fit together.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, ModelError> {
        Self::load_with(dir, &LoadOptions::default(), device)
    }

    /// Loads a directory in diffusers' layout, in another dtype or from a variant of the files.
    ///
    /// # Errors
    ///
    /// - The errors of [`Pipeline::load`].
    /// - [`ModelError::UnsupportedPrecision`] if the device does not compute in the dtype.
    /// - [`ModelError::InvalidRequest`] if no part has the requested variant, for an encoding of prompts
    ///   that the text encoder does not have, and for a resolution that the model does not draw.
    pub fn load_with(
        dir: &Path,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let index = model_index(dir)?;
        match FamilyName::of(dir, &index)? {
            FamilyName::StableDiffusion => {
                Self::load_family::<StableDiffusionConfigs>(dir, &index, options, device)
            }
            FamilyName::Flux2Klein => {
                Self::load_family::<Flux2KleinConfigs>(dir, &index, options, device)
            }
            FamilyName::ZImage => Self::load_family::<ZImageConfigs>(dir, &index, options, device),
        }
    }

    fn load_family<F: Family>(
        dir: &Path,
        index: &Map<String, Value>,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let configs = info_span!("configs")
            .in_scope(|| Configs::<F>::read(dir, index, &options.prompt_encoding))?;
        let mut found = Found::new(dir, options.variant.as_deref());
        let weights = configs.family.open(&mut found)?;
        let vae = found.open("vae", DIFFUSERS)?;
        let warnings = found.warnings()?;
        let mut pipeline = Self::assemble(dir, configs, weights, vae, options, device)?;
        pipeline.warnings.extend(warnings);
        Ok(pipeline)
    }

    /// Makes a pipeline of configs and open weight files.
    pub(crate) fn assemble<F: Family>(
        source: &Path,
        configs: Configs<F>,
        weights: F::Weights,
        vae: Checkpoint,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<Self, ModelError> {
        options.check(device)?;
        let Configs { family, vae: vae_config, scheduler } = configs;
        let is_distilled = family.is_distilled(&scheduler);
        let LoadedNetworks { text, denoiser, denoiser_config } =
            family.load(weights, options, device)?;
        // Rounded statistics would shift all colours.
        let exact = STATISTICS.iter().map(|path| (*path).to_owned()).collect();
        let dtype = vae_config.dtype(options.dtype);
        let precision = WeightPrecision { exact, ..dtype.into() };
        let vae = vae.with_renamed_keys(weights::KEY_RENAMES);
        let vae = info_span!("vae")
            .in_scope(|| vae.load_into_mixed(vae_config.init(device), &precision))?;
        let pipeline = Self {
            text,
            denoiser,
            vae,
            scheduler,
            denoiser_config,
            vae_config,
            resolution: options.resolution,
            source: source.to_path_buf(),
            is_distilled,
            warnings: LoadWarning::of_activations(options.denoiser_precision().storage, device)
                .into_iter()
                .collect(),
            device: device.clone(),
        };
        pipeline.check_resolution()?;
        Ok(pipeline)
    }
}
