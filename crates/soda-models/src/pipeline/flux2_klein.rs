//! The parts of a FLUX.2 klein model in diffusers' layout: a language model as text encoder, and a
//! transformer. Mirrors diffusers' `Flux2KleinPipeline`.
//!
//! The transformer may come from a file of its own, in the names of the original code.

use std::path::Path;

use burn::tensor::{Device, FloatDType};
use serde_json::{Map, Value};
use tracing::info_span;

use super::denoiser::{Denoiser, DenoiserConfig};
use super::family::{
    Configs, DIFFUSERS, DenoiserPrecision, Family, Found, LoadOptions, LoadedNetworks,
    TRANSFORMERS, unsupported,
};
use super::family_name::model_index;
use super::load_warning::LoadWarning;
use super::model::Pipeline;
use super::text_encoders::{Qwen3Encoder, TextEncoders};
use crate::config;
use crate::error::ModelError;
use crate::flux2::Flux2Config;
use crate::qwen3::{self, HiddenStates, Qwen3Config};
use crate::scheduler::{SamplerKind, SchedulerConfig};
use crate::tokenizer::QwenTokenizer;
use crate::vae::{VaeClass, VaeConfig};
use crate::weights::Checkpoint;
use crate::weights::ldm::Layout;

/// The configs and the tokenizer.
#[derive(Debug)]
pub(super) struct Flux2KleinConfigs {
    text: Qwen3Config,
    states: HiddenStates,
    transformer: Flux2Config,
    tokenizer: QwenTokenizer,
    is_distilled: bool,
}

/// The open weight files of each network, with the networks' keys.
pub(super) struct Flux2KleinWeights {
    text: Checkpoint,
    transformer: Checkpoint,
}

impl Family for Flux2KleinConfigs {
    type Weights = Flux2KleinWeights;

    fn read(dir: &Path, index: &Map<String, Value>) -> Result<Self, ModelError> {
        let text: Qwen3Config = config::read(&dir.join("text_encoder/config.json"))?;
        let transformer = config::read(&dir.join(Denoiser::TRANSFORMER).join("config.json"))?;
        let tokenizer_dir = dir.join("tokenizer");
        let tokenizer = QwenTokenizer::from_dir(&tokenizer_dir)?;
        tokenizer.check_fits(&tokenizer_dir, &text)?;
        let states = text.hidden_states(HiddenStates::FLUX2_KLEIN)?;
        let is_distilled = match index.get("is_distilled") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(is_distilled)) => *is_distilled,
            Some(other) => {
                return Err(unsupported(
                    dir.join("model_index.json"),
                    "is_distilled",
                    other.to_string(),
                    "true or false".to_owned(),
                ));
            }
        };
        Ok(Self { text, states, transformer, tokenizer, is_distilled })
    }

    fn check(
        &self,
        dir: &Path,
        vae: &VaeConfig,
        scheduler: &SchedulerConfig,
    ) -> Result<(), ModelError> {
        let refuse = |part: &str, field: &str, value: String, supported: String| {
            Err(unsupported(dir.join(part).join("config.json"), field, value, supported))
        };
        if !scheduler.is_flow() {
            return Err(unsupported(
                dir.join("scheduler/scheduler_config.json"),
                "_class_name",
                scheduler.class.class_name(),
                SamplerKind::FlowMatchEuler.class_name(),
            ));
        }
        if vae.class != VaeClass::Flux2 {
            let supported =
                "AutoencoderKLFlux2, since the model is a Flux2KleinPipeline".to_owned();
            return refuse("vae", "_class_name", "another class".to_owned(), supported);
        }
        let width = self.text.hidden_size * self.states.indices().len();
        let found = self.transformer.joint_attention_dim;
        if found != width {
            let supported = format!("{width}, the width of three states of the text encoder");
            let part = Denoiser::TRANSFORMER;
            return refuse(part, "joint_attention_dim", found.to_string(), supported);
        }
        let (latents, found) = (vae.patch_channels(), self.transformer.in_channels);
        if found != latents {
            let supported = format!("{latents}, the channels of a patch of the latents");
            return refuse(Denoiser::TRANSFORMER, "in_channels", found.to_string(), supported);
        }
        Ok(())
    }

    fn open(&self, found: &mut Found<'_>) -> Result<Self::Weights, ModelError> {
        Ok(Flux2KleinWeights {
            text: found.open("text_encoder", TRANSFORMERS)?,
            transformer: found.open_denoiser(Denoiser::TRANSFORMER)?,
        })
    }

    fn load(
        self,
        weights: Self::Weights,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<LoadedNetworks, ModelError> {
        let Self { text, states, transformer, tokenizer, is_distilled } = self;
        let text_encoder = info_span!("text_encoder")
            .in_scope(|| qwen3::load_opened(weights.text, &text, &states, options.dtype, device))?;
        let DenoiserPrecision { dtype, keep_f32 } = options.denoiser_precision();
        let denoiser = info_span!("transformer").in_scope(|| {
            weights.transformer.load_into_mixed(transformer.init(device), dtype, &keep_f32)
        })?;
        Ok(LoadedNetworks {
            text: TextEncoders::Qwen3(Box::new(Qwen3Encoder { tokenizer, text_encoder })),
            denoiser: denoiser.into(),
            denoiser_config: DenoiserConfig::Flux2(transformer),
            is_distilled,
        })
    }
}

/// A key that every transformer of FLUX.2 has in the original names, and no other model.
pub(super) const MARK: &str = "single_stream_modulation.lin.weight";

/// What all keys of a single file may begin with: nothing, as in the published files, or the names of the
/// transformer in larger files of ComfyUI.
const PREFIXES: [&str; 3] = ["", "model.diffusion_model.", "diffusion_model."];

/// Returns what the keys of a transformer in the original names begin with. `None` for another file.
pub(super) fn prefix_of(checkpoint: &Checkpoint) -> Option<&'static str> {
    let has = |prefix: &&str| checkpoint.entries.contains_key(&format!("{prefix}{MARK}"));
    PREFIXES.into_iter().find(has)
}

impl Pipeline {
    /// Loads a transformer in the original names, and all else from the directory `source`.
    ///
    /// `prefix` is what the keys begin with. Tensors of other networks are left out with a warning.
    pub(super) fn load_flux2_file(
        file: &Checkpoint,
        prefix: &'static str,
        source: &Path,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let configs = Configs::<Flux2KleinConfigs>::read(source, &model_index(source)?)?;
        let mut found = Found::new(source, None);
        let weights = Flux2KleinWeights {
            text: found.open("text_encoder", TRANSFORMERS)?,
            transformer: Layout::flux2(&configs.family.transformer, prefix).read(file),
        };
        let vae = found.open("vae", DIFFUSERS)?;
        let mut warnings = found.warnings()?;
        let others = || file.entries.keys().filter(|key| !key.starts_with(prefix));
        if let Some(first) = others().next() {
            let (file, count, first) = (file.path.clone(), others().count(), first.clone());
            warnings.push(LoadWarning::UnreadTensors { file, count, first });
        }
        let options = LoadOptions { dtype, ..LoadOptions::default() };
        let mut pipeline = Self::assemble(source, configs, weights, vae, &options, device)?;
        pipeline.warnings = warnings;
        Ok(pipeline)
    }
}
