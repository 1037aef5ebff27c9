//! Reading and writing a directory in diffusers' layout.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use burn::tensor::{Device, FloatDType};
use serde_json::{Value, json};

use super::{Pipeline, SecondEncoder, words};
use crate::clip::text::{ClipTextConfig, ClipTextModel, RENAMED as TEXT_ENCODER_KEYS};
use crate::config;
use crate::error::ModelError;
use crate::scheduler::SchedulerConfig;
use crate::tokenizer::Tokenizer;
use crate::unet::UnetConfig;
use crate::unet::config::AdditionEmbedType;
use crate::vae::VaeConfig;
use crate::weights::{self, Checkpoint};

/// The names of the weights, without variant and extension.
const TRANSFORMERS: &str = "model";
const DIFFUSERS: &str = "diffusion_pytorch_model";

/// How a model is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// The precision of the weights in memory. An autoencoder that overflows in f16 stays in f32.
    pub dtype: FloatDType,
    /// The variant of the files, such as `fp16`; without one, the plain ones, or else the only
    /// variant there is.
    pub variant: Option<String>,
    /// The UNet's own precision, where it is another.
    pub unet: Option<UnetPrecision>,
}

/// The precision of a UNet of which some weights are to be adapted: an adapter is made from a weight as it is in the
/// file, and all others never exist in f32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnetPrecision {
    /// Of the weights.
    pub dtype: FloatDType,
    /// Paths of those that are in f32 nevertheless, until who asked for them has cast them.
    pub exact: BTreeSet<String>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { dtype: FloatDType::F32, variant: None, unet: None }
    }
}

/// The configs of a model, read and found to fit together; nothing large is in memory yet.
#[derive(Debug)]
pub(crate) struct Configs {
    pub(crate) text: ClipTextConfig,
    pub(crate) text_2: Option<ClipTextConfig>,
    pub(crate) unet: UnetConfig,
    pub(crate) vae: VaeConfig,
    pub(crate) scheduler: SchedulerConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) tokenizer_2: Option<Tokenizer>,
    pub(crate) zeros_for_empty_prompt: bool,
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
        let read_tokenizer = |part: &str, config: &ClipTextConfig| {
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
            zeros_for_empty_prompt: model_index(dir)?
                .get("force_zeros_for_empty_prompt")
                .and_then(Value::as_bool)
                .unwrap_or(true),
        };
        configs.check(dir)?;
        Ok(configs)
    }

    /// Refuses parts that are each right but do not fit together.
    fn check(&self, dir: &Path) -> Result<(), ModelError> {
        let refuse = |part: &str, field: &str, value: usize, supported: String| {
            Err(ModelError::UnsupportedField {
                path: dir.join(part).join("config.json"),
                field: field.to_string(),
                value: value.to_string(),
                supported,
            })
        };
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
            // Six time ids; the refiner's five are another model.
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

    /// The precision of the autoencoder where the rest is `dtype`.
    pub(crate) fn vae_dtype(&self, dtype: FloatDType) -> FloatDType {
        // SDXL's activations exceed f16's 65504.
        if dtype == FloatDType::F16 && self.vae.force_upcast { FloatDType::F32 } else { dtype }
    }
}

/// The weights of each part, under the names of the networks.
pub(crate) struct Parts {
    pub(crate) text: Checkpoint,
    pub(crate) text_2: Option<Checkpoint>,
    pub(crate) unet: Checkpoint,
    pub(crate) vae: Checkpoint,
}

impl Pipeline {
    /// Reads a directory in diffusers' layout, as f32.
    ///
    /// # Errors
    ///
    /// Files that are missing, broken, not supported or do not fit together, by name.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, ModelError> {
        Self::load_with(dir, &LoadOptions::default(), device)
    }

    /// [`Pipeline::load`] in another precision, or of a variant of the files.
    ///
    /// # Errors
    ///
    /// Those of [`Pipeline::load`].
    pub fn load_with(
        dir: &Path,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let configs = Configs::read(dir)?;
        let find = |part: &str, stem: &str| {
            Checkpoint::find(&dir.join(part), stem, options.variant.as_deref())
        };
        let parts = Parts {
            text: find("text_encoder", TRANSFORMERS)?,
            text_2: match configs.text_2 {
                Some(_) => Some(find("text_encoder_2", TRANSFORMERS)?),
                None => None,
            },
            unet: find("unet", DIFFUSERS)?,
            vae: find("vae", DIFFUSERS)?,
        };
        Self::assemble(dir, configs, parts, options, device)
    }

    /// Loads the weights.
    pub(crate) fn assemble(
        source: &Path,
        configs: Configs,
        parts: Parts,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let dtype = options.dtype;
        let unet = options.unet.clone();
        let unet = unet.unwrap_or(UnetPrecision { dtype, exact: BTreeSet::new() });
        for dtype in [dtype, unet.dtype] {
            if !device.supports_dtype(dtype) {
                return Err(ModelError::UnsupportedPrecision { dtype });
            }
        }
        let load_text = |config: &ClipTextConfig, weights: Checkpoint| {
            weights.renamed(TEXT_ENCODER_KEYS).load_into(config.init(device), dtype)
        };
        let text_encoder: ClipTextModel = load_text(&configs.text, parts.text)?;
        let second = match (&configs.text_2, configs.tokenizer_2.clone(), parts.text_2) {
            (Some(config), Some(tokenizer), Some(weights)) => Some(SecondEncoder {
                tokenizer,
                text_encoder: load_text(config, weights)?,
                zeros_for_empty_prompt: configs.zeros_for_empty_prompt,
            }),
            _ => None,
        };
        let vae_dtype = configs.vae_dtype(dtype);
        Ok(Self {
            text_encoder,
            second,
            unet: parts.unet.load_into_but(configs.unet.init(device), unet.dtype, unet.exact)?,
            vae: parts
                .vae
                .renamed(weights::RENAMED)
                .load_into(configs.vae.init(device), vae_dtype)?,
            tokenizer: configs.tokenizer,
            scheduler: configs.scheduler,
            unet_config: configs.unet,
            vae_config: configs.vae,
            source: source.to_path_buf(),
            device: device.clone(),
        })
    }

    /// Writes a directory that diffusers, and [`Pipeline::load`], read, as f32: nothing that was
    /// merged into the weights is rounded away.
    ///
    /// # Errors
    ///
    /// Those of [`Pipeline::save_as`].
    pub fn save(&self, dir: &Path) -> Result<(), ModelError> {
        self.save_as(dir, FloatDType::F32)
    }

    /// Writes a directory that diffusers, and [`Pipeline::load`], read.
    ///
    /// Configs and tokenizers are copied from [`Pipeline::source`]; the weights are those in memory.
    /// The directory appears whole or not at all, and must not exist before.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn save_as(&self, dir: &Path, dtype: FloatDType) -> Result<(), ModelError> {
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| ModelError::Io { path, source }
        };
        if dir.exists() {
            return Err(io(dir)(std::io::ErrorKind::AlreadyExists.into()));
        }
        let parent = match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(io(parent))?;
        // Beside the target, since a rename cannot cross file systems; removed when this returns.
        let staging =
            tempfile::Builder::new().prefix(".soda-").tempdir_in(parent).map_err(io(parent))?;
        // One level down: the temporary directory itself is closed to other users.
        let to = &staging.path().join("model");
        fs::create_dir(to).map_err(io(to))?;

        fs::write(to.join("model_index.json"), self.model_index()?).map_err(io(to))?;
        for part in self.parts() {
            let (from, to) = (self.source.join(part), to.join(part));
            fs::create_dir(&to).map_err(io(&to))?;
            for entry in fs::read_dir(&from).map_err(io(&from))? {
                let name = entry.map_err(io(&from))?.file_name();
                let file = from.join(&name);
                let settings = file.extension().is_some_and(|e| e == "json" || e == "txt");
                // The index of weights that are written as one file would mislead.
                let index = name.to_string_lossy().contains(".safetensors.index.");
                if settings && !index {
                    fs::copy(&file, to.join(&name)).map_err(io(&file))?;
                }
            }
        }
        self.write_schedule(&to.join("scheduler/scheduler_config.json"))?;
        let save = |part: &str, stem: &str| to.join(part).join(format!("{stem}.safetensors"));
        let save_text = |tokenizer: &Tokenizer, encoder: &ClipTextModel, suffix: &str| {
            let encoder = encoder.clone().with_one_table();
            let [own, of_tokenizer] =
                ["text_encoder", "tokenizer"].map(|part| format!("{part}{suffix}"));
            words::save(tokenizer, &encoder, &to.join(of_tokenizer), &to.join(&own))?;
            weights::save(&encoder, &save(&own, TRANSFORMERS), dtype)
        };
        save_text(&self.tokenizer, &self.text_encoder, "")?;
        if let Some(second) = &self.second {
            save_text(&second.tokenizer, &second.text_encoder, "_2")?;
        }
        weights::save(&self.unet, &save("unet", DIFFUSERS), dtype)?;
        weights::save(&self.vae, &save("vae", DIFFUSERS), dtype)?;
        fs::rename(to, dir).map_err(io(dir))
    }

    /// Puts what a fine-tune has changed of the schedule into the file, which is the source's.
    fn write_schedule(&self, path: &Path) -> Result<(), ModelError> {
        let (file, own): (SchedulerConfig, _) = (config::read(path)?, &self.scheduler);
        if file.prediction_type == own.prediction_type
            && file.rescale_betas_zero_snr == own.rescale_betas_zero_snr
        {
            return Ok(());
        }
        words::edit(path, |file| {
            file.insert("prediction_type".to_owned(), json!(own.prediction_type));
            file.insert("rescale_betas_zero_snr".to_owned(), json!(own.rescale_betas_zero_snr));
            if own.rescale_betas_zero_snr {
                file.insert("timestep_spacing".to_owned(), json!("trailing"));
                file.insert("_class_name".to_owned(), json!(own.class));
                for (field, value) in
                    [("clip_sample", own.clip_sample), ("set_alpha_to_one", own.set_alpha_to_one)]
                {
                    if let Some(value) = value {
                        file.insert(field.to_owned(), json!(value));
                    }
                }
            }
        })
    }

    /// The folders of the directory.
    fn parts(&self) -> &'static [&'static str] {
        const PARTS: &[&str] = &[
            "scheduler",
            "tokenizer",
            "text_encoder",
            "unet",
            "vae",
            "tokenizer_2",
            "text_encoder_2",
        ];
        if self.second.is_some() { PARTS } else { &PARTS[..5] }
    }

    /// The source's `model_index.json` without the parts that are not written, such as a safety
    /// checker: diffusers would look for them.
    fn model_index(&self) -> Result<String, ModelError> {
        let path = self.source.join("model_index.json");
        let mut index = model_index(&self.source)?;
        for (part, class) in &mut index {
            if class.is_array() && !self.parts().contains(&part.as_str()) {
                *class = json!([null, null]);
            }
        }
        if self.second.is_none() {
            index.insert("requires_safety_checker".to_string(), json!(false));
        }
        serde_json::to_string_pretty(&index).map_err(|source| ModelError::Json { path, source })
    }
}

/// The directory's table of contents.
fn model_index(dir: &Path) -> Result<serde_json::Map<String, Value>, ModelError> {
    let path = dir.join("model_index.json");
    let text = fs::read_to_string(&path)
        .map_err(|e| ModelError::io(&path, "the model's model_index.json", e))?;
    serde_json::from_str(&text).map_err(|source| ModelError::Json { path, source })
}
