//! The parts of a FLUX.2 klein model in diffusers' layout: a language model as text encoder, and a
//! transformer. Mirrors diffusers' `Flux2KleinPipeline`.

use std::path::Path;

use burn::tensor::Device;
use serde_json::{Map, Value};

use super::qwen3_and_transformer::{Qwen3AndTransformer, Qwen3Configs};
use super::transformer_file::TransformerFamily;
use crate::config;
use crate::error::ModelError;
use crate::flux2::Flux2Config;
use crate::pipeline::denoiser::{Denoiser, DenoiserConfig};
use crate::pipeline::family::{
    Family, Found, LoadOptions, LoadedNetworks, check_flow, distilled_mark, refuse_config,
};
use crate::pipeline::prompt_encoding::PromptEncoding;
use crate::pipeline::text_encoders::ChatForm;
use crate::qwen3::HiddenStates;
use crate::scheduler::SchedulerConfig;
use crate::vae::{VaeClass, VaeConfig};
use crate::weights::ldm::Layout;

/// The configs and the tokenizer.
#[derive(Debug)]
pub(crate) struct Flux2KleinConfigs {
    text: Qwen3Configs,
    transformer: Flux2Config,
    is_distilled: bool,
}

impl TransformerFamily for Flux2KleinConfigs {
    fn original_layout(&self, prefix: &'static str) -> Layout {
        self.transformer.original_layout(prefix)
    }
}

impl Family for Flux2KleinConfigs {
    type Weights = Qwen3AndTransformer;

    fn read(
        dir: &Path,
        index: &Map<String, Value>,
        encoding: &PromptEncoding,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            text: Qwen3Configs::read(
                dir,
                HiddenStates::FLUX2_KLEIN,
                ChatForm::FLUX2_KLEIN,
                encoding,
            )?,
            transformer: config::read(&dir.join(Denoiser::TRANSFORMER).join("config.json"))?,
            is_distilled: distilled_mark(dir, index)?.unwrap_or(false),
        })
    }

    fn check(
        &self,
        dir: &Path,
        vae: &VaeConfig,
        scheduler: &SchedulerConfig,
    ) -> Result<(), ModelError> {
        check_flow(dir, scheduler)?;
        if vae.class != VaeClass::Flux2 {
            let supported =
                "AutoencoderKLFlux2, since the model is a Flux2KleinPipeline".to_owned();
            return refuse_config(dir, "vae", "_class_name", "another class", supported);
        }
        let (width, found) = (self.text.width(), self.transformer.joint_attention_dim);
        if found != width {
            let supported =
                format!("{width}, the width of the text encoder's states that are read");
            let part = Denoiser::TRANSFORMER;
            return refuse_config(dir, part, "joint_attention_dim", found, supported);
        }
        let (latents, found) = (vae.patch_channels(), self.transformer.in_channels);
        if found != latents {
            let supported = format!("{latents}, the channels of a patch of the latents");
            return refuse_config(dir, Denoiser::TRANSFORMER, "in_channels", found, supported);
        }
        Ok(())
    }

    fn is_distilled(&self, _scheduler: &SchedulerConfig) -> bool {
        self.is_distilled
    }

    fn open(&self, found: &mut Found<'_>) -> Result<Self::Weights, ModelError> {
        Qwen3AndTransformer::open(found)
    }

    fn load(
        self,
        weights: Self::Weights,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<LoadedNetworks, ModelError> {
        let network = (self.transformer.init(device), DenoiserConfig::Flux2(self.transformer));
        weights.load(self.text, network, options, device)
    }
}
