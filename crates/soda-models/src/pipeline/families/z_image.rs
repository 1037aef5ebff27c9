//! The parts of a Z-Image model in diffusers' layout: a language model as text encoder, and a transformer.
//! Mirrors diffusers' `ZImagePipeline`.

use std::path::Path;

use burn::tensor::Device;
use serde_json::{Map, Value};

use super::qwen3_and_transformer::{Qwen3AndTransformer, Qwen3Configs};
use super::transformer_file::TransformerFamily;
use crate::config;
use crate::error::ModelError;
use crate::pipeline::denoiser::{Denoiser, DenoiserConfig};
use crate::pipeline::family::{
    Family, Found, LoadOptions, LoadedNetworks, check_flow, distilled_mark, refuse_config,
    unsupported,
};
use crate::pipeline::prompt_encoding::PromptEncoding;
use crate::pipeline::text_encoders::ChatForm;
use crate::qwen3::HiddenStates;
use crate::scheduler::SchedulerConfig;
use crate::vae::{VaeClass, VaeConfig};
use crate::weights::ldm::Layout;
use crate::z_image::ZImageConfig;

/// The shift of Z-Image-Turbo's noise levels, which tells it from Z-Image with its shift of 6. No other file
/// says that it is distilled.
const TURBO_SHIFT: f64 = 3.0;

/// The configs and the tokenizer.
#[derive(Debug)]
pub(crate) struct ZImageConfigs {
    text: Qwen3Configs,
    transformer: ZImageConfig,
    /// What the `model_index.json` says, if anything.
    distilled_mark: Option<bool>,
}

impl TransformerFamily for ZImageConfigs {
    fn original_layout(&self, prefix: &'static str) -> Layout {
        self.transformer.original_layout(prefix)
    }
}

impl Family for ZImageConfigs {
    type Weights = Qwen3AndTransformer;

    fn read(
        dir: &Path,
        index: &Map<String, Value>,
        encoding: &PromptEncoding,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            text: Qwen3Configs::read(dir, HiddenStates::Z_IMAGE, ChatForm::Z_IMAGE, encoding)?,
            transformer: config::read(&dir.join(Denoiser::TRANSFORMER).join("config.json"))?,
            distilled_mark: distilled_mark(dir, index)?,
        })
    }

    fn check(
        &self,
        dir: &Path,
        vae: &VaeConfig,
        scheduler: &SchedulerConfig,
    ) -> Result<(), ModelError> {
        check_flow(dir, scheduler)?;
        if scheduler.use_dynamic_shifting {
            return Err(unsupported(
                dir.join("scheduler/scheduler_config.json"),
                "use_dynamic_shifting",
                "true".to_owned(),
                "false, since the shift of Z-Image is constant".to_owned(),
            ));
        }
        if vae.class != VaeClass::Kl {
            let supported = "AutoencoderKL, since the model is a ZImagePipeline".to_owned();
            return refuse_config(dir, "vae", "_class_name", "another class", supported);
        }
        let of_transformer = |field: &str, value: String, supported: String| {
            refuse_config(dir, Denoiser::TRANSFORMER, field, value, supported)
        };
        let ZImageConfig { cap_feat_dim, in_channels, axes_lens, .. } = &self.transformer;
        let width = self.text.width();
        if *cap_feat_dim != width {
            let supported = format!("{width}, the width of the text encoder's states");
            return of_transformer("cap_feat_dim", cap_feat_dim.to_string(), supported);
        }
        let latents = vae.latent_channels;
        if *in_channels != latents {
            let supported = format!("{latents}, the channels of the latents");
            return of_transformer("in_channels", in_channels.to_string(), supported);
        }
        let tokens = self.text.most_tokens();
        let positions = ZImageConfig::positions(tokens);
        if axes_lens[0] < positions {
            let supported = format!("at least {positions} first, for prompts of {tokens} tokens");
            return of_transformer("axes_lens", format!("{axes_lens:?}"), supported);
        }
        Ok(())
    }

    fn is_distilled(&self, scheduler: &SchedulerConfig) -> bool {
        self.distilled_mark.unwrap_or(scheduler.shift == TURBO_SHIFT)
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
        let network = (self.transformer.init(device), DenoiserConfig::ZImage(self.transformer));
        weights.load(self.text, network, options, device)
    }
}
