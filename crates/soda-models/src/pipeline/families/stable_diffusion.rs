//! The parts of a Stable Diffusion model in diffusers' layout: text encoders and UNet.

use std::path::Path;

use burn::tensor::Device;
use serde_json::{Map, Value};
use tracing::info_span;

use crate::clip::{ClipTextConfig, ClipTextModel, TEXT_KEY_RENAMES};
use crate::config;
use crate::error::ModelError;
use crate::pipeline::denoiser::{Denoiser, DenoiserConfig};
use crate::pipeline::family::{
    Family, Found, LoadOptions, LoadedNetworks, TRANSFORMERS, refuse_config, unsupported,
};
use crate::pipeline::prompt_encoding::PromptEncoding;
use crate::pipeline::text_encoders::{ClipEncoders, SecondTextEncoder, TextEncoders};
use crate::scheduler::SchedulerConfig;
use crate::tokenizer::Tokenizer;
use crate::unet::{AdditionEmbedType, UnetConfig};
use crate::vae::VaeConfig;
use crate::weights::Checkpoint;

/// The configs and tokenizers.
#[derive(Debug)]
pub(crate) struct StableDiffusionConfigs {
    pub(crate) text: ClipTextConfig,
    pub(crate) text_2: Option<ClipTextConfig>,
    pub(crate) unet: UnetConfig,
    tokenizer: Tokenizer,
    tokenizer_2: Option<Tokenizer>,
    force_zeros_for_empty_prompt: bool,
}

/// The open weight files of each network, with the networks' keys.
pub(crate) struct StableDiffusionWeights {
    pub(crate) text: Checkpoint,
    pub(crate) text_2: Option<Checkpoint>,
    pub(crate) unet: Checkpoint,
}

impl Family for StableDiffusionConfigs {
    type Weights = StableDiffusionWeights;

    fn read(
        dir: &Path,
        index: &Map<String, Value>,
        encoding: &PromptEncoding,
    ) -> Result<Self, ModelError> {
        encoding.refuse_for_clip()?;
        let read_text = |part: &str| -> Result<ClipTextConfig, ModelError> {
            config::read(&dir.join(part).join("config.json"))
        };
        let text = read_text("text_encoder")?;
        let unet: UnetConfig = config::read(&dir.join(Denoiser::UNET).join("config.json"))?;
        let read_tokenizer = |part: &str, config: &ClipTextConfig| -> Result<_, ModelError> {
            let dir = dir.join(part);
            let tokenizer = Tokenizer::from_dir(&dir)?;
            tokenizer.check_fits(&dir, config)?;
            Ok(tokenizer)
        };
        let tokenizer = read_tokenizer("tokenizer", &text)?;
        let (text_2, tokenizer_2) = match unet.addition_embed_type {
            None => (None, None),
            Some(AdditionEmbedType::TextTime) => {
                let text_2 = read_text("text_encoder_2")?;
                let tokenizer = read_tokenizer("tokenizer_2", &text_2)?;
                (Some(text_2), Some(tokenizer))
            }
        };
        Ok(Self {
            text,
            text_2,
            unet,
            tokenizer,
            tokenizer_2,
            force_zeros_for_empty_prompt: index
                .get("force_zeros_for_empty_prompt")
                .and_then(Value::as_bool)
                .unwrap_or(true),
        })
    }

    fn check(
        &self,
        dir: &Path,
        vae: &VaeConfig,
        scheduler: &SchedulerConfig,
    ) -> Result<(), ModelError> {
        if scheduler.is_flow() {
            return Err(unsupported(
                dir.join("scheduler/scheduler_config.json"),
                "_class_name",
                scheduler.class.class_name(),
                "the class of a model with a UNet; flow matching is not".to_owned(),
            ));
        }
        let width = self.text.hidden_size + self.text_2.as_ref().map_or(0, |c| c.hidden_size);
        for level in 0..self.unet.block_out_channels.len() {
            let found = self.unet.cross_attention_dim.get(level);
            if found != width {
                let supported = format!("{width}, the width of the text encoders' states");
                return refuse_config(dir, "unet", "cross_attention_dim", found, supported);
            }
        }
        if let Some(text_2) = &self.text_2 {
            let Some(pooled) = text_2.projection_dim else {
                let supported = "a `CLIPTextModelWithProjection` in `architectures`".to_string();
                return refuse_config(dir, "text_encoder_2", "projection_dim", 0, supported);
            };
            // Six time ids. The refiner of SDXL has five and is another model.
            let sum = pooled + 6 * self.unet.addition_time_embed_dim.unwrap_or(0);
            let found = self.unet.projection_class_embeddings_input_dim.unwrap_or(0);
            if found != sum {
                let supported = format!("{sum}, the pooled text and six time ids");
                let field = "projection_class_embeddings_input_dim";
                return refuse_config(dir, "unet", field, found, supported);
            }
        }
        if let Some(shift) = vae.shift_factor.filter(|shift| *shift != 0.0) {
            let supported =
                "null or 0, since the pipelines of Stable Diffusion do not read it".to_owned();
            return refuse_config(dir, "vae", "shift_factor", shift, supported);
        }
        let latents = vae.patch_channels();
        if self.unet.out_channels != latents {
            let supported = format!("{latents}, the channels of the autoencoder's latents");
            return refuse_config(dir, "unet", "out_channels", self.unet.out_channels, supported);
        }
        let inputs = [latents, 2 * latents + 1];
        if !inputs.contains(&self.unet.in_channels) {
            let [plain, inpainting] = inputs;
            let supported = format!("{plain}, or {inpainting} for inpainting");
            return refuse_config(dir, "unet", "in_channels", self.unet.in_channels, supported);
        }
        Ok(())
    }

    fn open(&self, found: &mut Found<'_>) -> Result<StableDiffusionWeights, ModelError> {
        Ok(StableDiffusionWeights {
            text: found.open("text_encoder", TRANSFORMERS)?,
            text_2: match self.text_2 {
                Some(_) => Some(found.open("text_encoder_2", TRANSFORMERS)?),
                None => None,
            },
            unet: found.open_denoiser(Denoiser::UNET)?,
        })
    }

    fn load(
        self,
        weights: StableDiffusionWeights,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<LoadedNetworks, ModelError> {
        let load_text = |config: &ClipTextConfig, weights: Checkpoint| {
            let weights = weights.with_renamed_keys(TEXT_KEY_RENAMES);
            weights.load_into_mixed(config.init(device), &options.text_precision())
        };
        let text_encoder: ClipTextModel =
            info_span!("text_encoder").in_scope(|| load_text(&self.text, weights.text))?;
        let second = match (&self.text_2, self.tokenizer_2, weights.text_2) {
            (Some(config), Some(tokenizer), Some(weights)) => Some(SecondTextEncoder {
                tokenizer,
                text_encoder: info_span!("text_encoder_2")
                    .in_scope(|| load_text(config, weights))?,
                force_zeros_for_empty_prompt: self.force_zeros_for_empty_prompt,
            }),
            _ => None,
        };
        let precision = options.denoiser_precision();
        let unet = info_span!("unet")
            .in_scope(|| weights.unet.load_into_mixed(self.unet.init(device), &precision))?;
        let clip = ClipEncoders { tokenizer: self.tokenizer, text_encoder, second };
        Ok(LoadedNetworks {
            text: TextEncoders::Clip(Box::new(clip)),
            denoiser: unet.into(),
            denoiser_config: DenoiserConfig::Unet(self.unet),
        })
    }
}
