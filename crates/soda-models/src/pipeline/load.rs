//! Loading a directory in diffusers' layout.

use std::collections::BTreeSet;
use std::path::Path;

use burn::tensor::{Device, FloatDType};
use serde_json::{Map, Value};

use super::json;
use super::load_warning::LoadWarning;
use super::model::{Pipeline, SecondTextEncoder};
use crate::clip::{ClipTextConfig, ClipTextModel, TEXT_KEY_RENAMES};
use crate::config;
use crate::error::{ConfigError, ModelError};
use crate::scheduler::SchedulerConfig;
use crate::tokenizer::Tokenizer;
use crate::unet::{AdditionEmbedType, UnetConfig};
use crate::vae::VaeConfig;
use crate::weights::{self, Checkpoint};

/// The names of weight files, without variant and extension.
pub(super) const TRANSFORMERS: &str = "model";
pub(super) const DIFFUSERS: &str = "diffusion_pytorch_model";

/// How a model is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// The dtype of the weights in memory. An autoencoder that overflows in f16 stays in f32.
    pub dtype: FloatDType,
    /// The variant of the weight files, such as `fp16`. Parts without it are read from their plain files.
    /// `None` for the plain files, or else for the only variant there is.
    pub variant: Option<String>,
    /// The dtype of the denoiser's weights, if it differs.
    pub denoiser: Option<DenoiserPrecision>,
}

/// The dtypes of a denoiser that is to be adapted.
///
/// An adapter is made from a weight as it is in the file. All other weights never exist in f32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DenoiserPrecision {
    /// The dtype of the weights that are not in `keep_f32`.
    pub dtype: FloatDType,
    /// Paths of the weights that are loaded as f32. The caller casts them after it has made the adapters.
    pub keep_f32: BTreeSet<String>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { dtype: FloatDType::F32, variant: None, denoiser: None }
    }
}

/// The configs and tokenizers of a model, checked to fit together.
#[derive(Debug)]
pub(crate) struct Configs {
    pub(crate) text: ClipTextConfig,
    pub(crate) text_2: Option<ClipTextConfig>,
    pub(crate) unet: UnetConfig,
    pub(crate) vae: VaeConfig,
    pub(crate) scheduler: SchedulerConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) tokenizer_2: Option<Tokenizer>,
    pub(crate) force_zeros_for_empty_prompt: bool,
}

impl Configs {
    /// Reads everything but the weights.
    pub(crate) fn read(dir: &Path) -> Result<Self, ModelError> {
        if !dir.is_dir() {
            let what = "a model directory in diffusers' layout";
            return Err(ModelError::Missing { path: dir.to_path_buf(), what });
        }
        let read_text = |part: &str| -> Result<ClipTextConfig, ModelError> {
            config::read(&dir.join(part).join("config.json"))
        };
        let text = read_text("text_encoder")?;
        let unet: UnetConfig = config::read(&dir.join("unet/config.json"))?;
        let vae = config::read(&dir.join("vae/config.json"))?;
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
        let configs = Self {
            text,
            text_2,
            unet,
            vae,
            scheduler: config::read(&dir.join("scheduler/scheduler_config.json"))?,
            tokenizer,
            tokenizer_2,
            force_zeros_for_empty_prompt: model_index(dir)?
                .get("force_zeros_for_empty_prompt")
                .and_then(Value::as_bool)
                .unwrap_or(true),
        };
        configs.check(dir)?;
        Ok(configs)
    }

    /// Refuses parts that do not fit together.
    fn check(&self, dir: &Path) -> Result<(), ModelError> {
        let refuse = |part: &str, field: &str, value: usize, supported: String| {
            Err(ConfigError::UnsupportedField {
                path: dir.join(part).join("config.json"),
                field: field.to_string(),
                value: value.to_string(),
                supported,
            }
            .into())
        };
        if self.scheduler.is_flow() {
            return Err(ConfigError::UnsupportedField {
                path: dir.join("scheduler/scheduler_config.json"),
                field: "_class_name".to_owned(),
                value: self.scheduler.class.class_name(),
                supported: "the class of a model with a UNet; flow matching is not".to_owned(),
            }
            .into());
        }
        let width = self.text.hidden_size + self.text_2.as_ref().map_or(0, |c| c.hidden_size);
        for level in 0..self.unet.block_out_channels.len() {
            let found = self.unet.cross_attention_dim.get(level);
            if found != width {
                let supported = format!("{width}, the width of the text encoders' states");
                return refuse("unet", "cross_attention_dim", found, supported);
            }
        }
        if let Some(text_2) = &self.text_2 {
            let Some(pooled) = text_2.projection_dim else {
                let supported = "a `CLIPTextModelWithProjection` in `architectures`".to_string();
                return refuse("text_encoder_2", "projection_dim", 0, supported);
            };
            // Six time ids. The refiner of SDXL has five and is another model.
            let sum = pooled + 6 * self.unet.addition_time_embed_dim.unwrap_or(0);
            let found = self.unet.projection_class_embeddings_input_dim.unwrap_or(0);
            if found != sum {
                let supported = format!("{sum}, the pooled text and six time ids");
                let field = "projection_class_embeddings_input_dim";
                return refuse("unet", field, found, supported);
            }
        }
        let latents = self.vae.latent_channels;
        if self.unet.out_channels != latents {
            let supported = format!("{latents}, the channels of the autoencoder's latents");
            return refuse("unet", "out_channels", self.unet.out_channels, supported);
        }
        let inputs = [latents, 2 * latents + 1];
        if !inputs.contains(&self.unet.in_channels) {
            let [plain, inpainting] = inputs;
            let supported = format!("{plain}, or {inpainting} for inpainting");
            return refuse("unet", "in_channels", self.unet.in_channels, supported);
        }
        Ok(())
    }

    /// The dtype of the autoencoder if the other networks are loaded as `dtype`.
    pub(crate) fn vae_dtype(&self, dtype: FloatDType) -> FloatDType {
        // The activations of SDXL's autoencoder exceed 65504, the largest f16.
        if dtype == FloatDType::F16 && self.vae.force_upcast { FloatDType::F32 } else { dtype }
    }
}

/// The open weight files of each network, with the networks' keys.
pub(crate) struct Parts {
    pub(crate) text: Checkpoint,
    pub(crate) text_2: Option<Checkpoint>,
    pub(crate) unet: Checkpoint,
    pub(crate) vae: Checkpoint,
}

/// The weight files of a directory that are opened, by the rule of diffusers: a part without the variant is
/// read from its plain files.
struct Found<'a> {
    dir: &'a Path,
    variant: Option<&'a str>,
    /// The parts with the variant, and those without it.
    varied: usize,
    plain: Vec<String>,
    warnings: Vec<LoadWarning>,
}

impl<'a> Found<'a> {
    fn new(dir: &'a Path, variant: Option<&'a str>) -> Self {
        Self { dir, variant, varied: 0, plain: Vec::new(), warnings: Vec::new() }
    }

    fn open(&mut self, part: &str, stem: &str) -> Result<Checkpoint, ModelError> {
        let dir = self.dir.join(part);
        let variant = self.variant.filter(|name| Checkpoint::exists(&dir, stem, Some(name)));
        match (self.variant, variant) {
            (Some(_), Some(_)) => self.varied += 1,
            // The request is not met, and the error names the file that it asked for.
            (Some(_), None) if !Checkpoint::exists(&dir, stem, None) => {
                return Checkpoint::find(&dir, stem, self.variant);
            }
            (Some(_), None) => self.plain.push(part.to_string()),
            (None, _) => {}
        }
        let weights = Checkpoint::find(&dir, stem, variant)?;
        if self.variant.is_none() && !Checkpoint::exists(&dir, stem, None) {
            self.warnings.push(LoadWarning::OnlyVariant { file: weights.path.clone() });
        }
        Ok(weights)
    }

    /// The warnings of all parts.
    fn warnings(mut self) -> Result<Vec<LoadWarning>, ModelError> {
        let Some(variant) = self.variant.map(str::to_string) else { return Ok(self.warnings) };
        if self.varied == 0 {
            let expected = format!("no part of {} has it; leave it out", self.dir.display());
            return Err(ModelError::InvalidRequest { field: "variant", value: variant, expected });
        }
        if !self.plain.is_empty() {
            self.warnings.push(LoadWarning::MixedVariants { variant, plain: self.plain });
        }
        Ok(self.warnings)
    }
}

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
    /// - [`ModelError::InvalidRequest`] if no part has the requested variant.
    pub fn load_with(
        dir: &Path,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let configs = Configs::read(dir)?;
        let mut found = Found::new(dir, options.variant.as_deref());
        let parts = Parts {
            text: found.open("text_encoder", TRANSFORMERS)?,
            text_2: match configs.text_2 {
                Some(_) => Some(found.open("text_encoder_2", TRANSFORMERS)?),
                None => None,
            },
            unet: found.open("unet", DIFFUSERS)?,
            vae: found.open("vae", DIFFUSERS)?,
        };
        let warnings = found.warnings()?;
        let mut pipeline = Self::assemble(dir, configs, parts, options, device)?;
        pipeline.warnings = warnings;
        Ok(pipeline)
    }

    /// Makes a pipeline of configs and open weight files.
    pub(crate) fn assemble(
        source: &Path,
        configs: Configs,
        parts: Parts,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let dtype = options.dtype;
        let unet = options.denoiser.clone();
        let unet = unet.unwrap_or(DenoiserPrecision { dtype, keep_f32: BTreeSet::new() });
        for dtype in [dtype, unet.dtype] {
            if !device.supports_dtype(dtype) {
                return Err(ModelError::UnsupportedPrecision { dtype });
            }
        }
        let load_text = |config: &ClipTextConfig, weights: Checkpoint| {
            weights.with_renamed_keys(TEXT_KEY_RENAMES).load_into(config.init(device), dtype)
        };
        let text_encoder: ClipTextModel = load_text(&configs.text, parts.text)?;
        let second = match (&configs.text_2, configs.tokenizer_2.clone(), parts.text_2) {
            (Some(config), Some(tokenizer), Some(weights)) => Some(SecondTextEncoder {
                tokenizer,
                text_encoder: load_text(config, weights)?,
                force_zeros_for_empty_prompt: configs.force_zeros_for_empty_prompt,
            }),
            _ => None,
        };
        let vae_dtype = configs.vae_dtype(dtype);
        Ok(Self {
            text_encoder,
            second_text_encoder: second,
            denoiser: parts.unet.load_into_mixed(
                configs.unet.init(device),
                unet.dtype,
                unet.keep_f32,
            )?,
            vae: parts
                .vae
                .with_renamed_keys(weights::KEY_RENAMES)
                .load_into(configs.vae.init(device), vae_dtype)?,
            tokenizer: configs.tokenizer,
            scheduler: configs.scheduler,
            denoiser_config: configs.unet,
            vae_config: configs.vae,
            source: source.to_path_buf(),
            warnings: Vec::new(),
            device: device.clone(),
        })
    }
}

/// Reads the directory's `model_index.json`, which has the class of each part.
pub(super) fn model_index(dir: &Path) -> Result<Map<String, Value>, ModelError> {
    json::read(&dir.join("model_index.json"), "the model's model_index.json")
}
