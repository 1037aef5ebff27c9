//! Text to pictures: the networks of a diffusers directory put together.
//!
//! ```text
//! prompt -> tokens -> text states;  noise -> steps x (UNet, guidance, DDIM) -> latents -> picture
//! ```
//!
//! Classifier-free guidance (arXiv 2207.12598): `eps = e(empty) + g (e(prompt) - e(empty))`.
//! Mirrors diffusers' `StableDiffusionPipeline`.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use image::RgbImage;
use serde_json::{Value, json};

use crate::clip::text::{ClipTextConfig, ClipTextModel, RENAMED as TEXT_ENCODER_KEYS};
use crate::config;
use crate::error::ModelError;
use crate::image::to_images;
use crate::noise::gaussian;
use crate::scheduler::{Ddpm, SchedulerConfig};
use crate::tokenizer::Tokenizer;
use crate::unet::{Unet, UnetConfig};
use crate::vae::{Vae, VaeConfig};
use crate::weights;

/// Prompts drawn at once: the UNet sees twice as many samples, and memory grows with them.
const PROMPTS_AT_ONCE: usize = 16;

/// The networks and settings of a Stable Diffusion model.
///
/// The fields are public: a trainer takes the UNet out, adapts it and puts it back.
#[derive(Debug)]
pub struct Pipeline {
    /// Text to tokens.
    pub tokenizer: Tokenizer,
    /// Tokens to text states.
    pub text_encoder: ClipTextModel,
    /// The denoiser.
    pub unet: Unet,
    /// Latents to pictures and back.
    pub vae: Vae,
    /// The noise schedule and the sampler's settings.
    pub scheduler: SchedulerConfig,
    /// The UNet's sizes.
    pub unet_config: UnetConfig,
    /// The autoencoder's sizes.
    pub vae_config: VaeConfig,
    /// The directory that it was read from.
    pub source: PathBuf,
    /// Where it computes.
    pub device: Device,
}

/// What to draw, and how.
#[derive(Debug, Clone)]
pub struct GenerateConfig {
    /// One picture each.
    pub prompts: Vec<String>,
    /// What the pictures should not be.
    pub negative_prompt: String,
    /// Steps of DDIM.
    pub steps: usize,
    /// Strength of the guidance; at 1 and below there is none, and half the work.
    pub guidance: f64,
    /// Picture `i` starts from noise that depends on this and on `i` alone.
    pub seed: u64,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            negative_prompt: String::new(),
            steps: 30,
            guidance: 5.0,
            seed: 0,
        }
    }
}

impl Pipeline {
    /// Reads a directory in diffusers' layout.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, ModelError> {
        if !dir.is_dir() {
            let what = "a model directory in diffusers' layout";
            return Err(ModelError::Missing { path: dir.to_path_buf(), what });
        }
        let text_config: ClipTextConfig = config::read(&dir.join("text_encoder/config.json"))?;
        let unet_config: UnetConfig = config::read(&dir.join("unet/config.json"))?;
        let vae_config: VaeConfig = config::read(&dir.join("vae/config.json"))?;
        Ok(Self {
            tokenizer: Tokenizer::from_dir(&dir.join("tokenizer"))?,
            text_encoder: weights::load_renamed(
                text_config.init(device),
                &dir.join(TEXT_WEIGHTS),
                TEXT_ENCODER_KEYS,
            )?,
            unet: weights::load(unet_config.init(device), &dir.join(UNET_WEIGHTS))?,
            vae: weights::load(vae_config.init(device), &dir.join(VAE_WEIGHTS))?,
            scheduler: config::read(&dir.join("scheduler/scheduler_config.json"))?,
            unet_config,
            vae_config,
            source: dir.to_path_buf(),
            device: device.clone(),
        })
    }

    /// Writes a directory that diffusers, and [`Pipeline::load`], read.
    ///
    /// Configs and tokenizer are copied from [`Pipeline::source`]; the weights are those in memory,
    /// as f32, so that nothing that was merged into them is rounded away. The directory appears
    /// whole or not at all, and must not exist before.
    pub fn save(&self, dir: &Path) -> Result<(), ModelError> {
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
        for part in ["scheduler", "tokenizer", "text_encoder", "unet", "vae"] {
            let (from, to) = (self.source.join(part), to.join(part));
            fs::create_dir(&to).map_err(io(&to))?;
            for entry in fs::read_dir(&from).map_err(io(&from))? {
                let name = entry.map_err(io(&from))?.file_name();
                let settings = Path::new(&name).extension();
                if settings.is_some_and(|extension| extension == "json" || extension == "txt") {
                    let file = from.join(&name);
                    fs::copy(&file, to.join(&name)).map_err(io(&file))?;
                }
            }
        }
        weights::save(&self.text_encoder, &to.join(TEXT_WEIGHTS), FloatDType::F32)?;
        weights::save(&self.unet, &to.join(UNET_WEIGHTS), FloatDType::F32)?;
        weights::save(&self.vae, &to.join(VAE_WEIGHTS), FloatDType::F32)?;

        fs::rename(to, dir).map_err(io(dir))
    }

    /// Text states of prompts, `[n, 77, d]`. A prompt that is too long is cut.
    pub fn encode_prompts(&self, prompts: &[String]) -> Tensor<3> {
        let ids: Vec<i32> = prompts
            .iter()
            .flat_map(|prompt| self.tokenizer.encode(prompt).ids)
            .map(|id| id as i32)
            .collect();
        let length = ids.len() / prompts.len().max(1);
        let ids = TensorData::new(ids, [prompts.len(), length]);
        self.text_encoder.forward(Tensor::from_data(ids, &self.device))
    }

    /// Draws pictures. `progress` is told (steps done, steps in all) after each step.
    pub fn generate(
        &self,
        request: &GenerateConfig,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<RgbImage>, ModelError> {
        let batches = request.prompts.len().div_ceil(PROMPTS_AT_ONCE);
        let total = batches * request.steps;
        let mut done = 0;
        let mut images = Vec::with_capacity(request.prompts.len());
        for (batch, prompts) in request.prompts.chunks(PROMPTS_AT_ONCE).enumerate() {
            let first = batch * PROMPTS_AT_ONCE;
            let noise = (first..first + prompts.len())
                .map(|index| self.initial_latents(request.seed, index))
                .collect();
            let part = GenerateConfig { prompts: prompts.to_vec(), ..request.clone() };
            let latents = self.denoise(&part, Tensor::cat(noise, 0), &mut |_| {
                done += 1;
                progress(done, total);
            })?;
            images.extend(to_images(self.decode(latents)));
        }
        Ok(images)
    }

    /// The noise that picture `index` of a seed starts from, `[1, c, h', w']`.
    pub fn initial_latents(&self, seed: u64, index: usize) -> Tensor<4> {
        let size = self.unet_config.sample_size;
        gaussian(seed, index as u64, [1, self.unet_config.in_channels, size, size], &self.device)
    }

    /// Turns noise into latents, `[n, c, h', w']` both, one sample for each prompt.
    ///
    /// `observe` sees the latents after each step.
    pub fn denoise(
        &self,
        request: &GenerateConfig,
        mut latents: Tensor<4>,
        observe: &mut dyn FnMut(&Tensor<4>),
    ) -> Result<Tensor<4>, ModelError> {
        let count = request.prompts.len();
        if !request.guidance.is_finite() {
            return Err(ModelError::InvalidRequest {
                field: "guidance",
                value: request.guidance.to_string(),
                expected: "it must be a finite number".to_string(),
            });
        }
        let mut sampler = self.scheduler.sampler(None, request.steps)?;
        let guided = request.guidance > 1.0;
        let text = self.encode_prompts(&request.prompts);
        let text = if guided {
            let empty = self.encode_prompts(std::slice::from_ref(&request.negative_prompt));
            Tensor::cat(vec![empty.repeat_dim(0, count), text], 0)
        } else {
            text
        };
        for (call, t) in sampler.timesteps().to_vec().into_iter().enumerate() {
            let input = sampler.scale_input(call, latents.clone());
            let input = if guided { input.repeat_dim(0, 2) } else { input };
            let steps = Tensor::<1>::full([input.dims()[0]], t, &self.device);
            let prediction = self.unet.forward(input, steps, text.clone());
            let prediction = if guided {
                let (empty, prompted) =
                    (prediction.clone().narrow(0, 0, count), prediction.narrow(0, count, count));
                empty.clone() + (prompted - empty).mul_scalar(request.guidance)
            } else {
                prediction
            };
            latents = sampler.step(call, prediction, latents, &mut || unreachable!());
            observe(&latents);
        }
        Ok(latents)
    }

    /// Latents `[n, c, h', w']` to pictures `[n, 3, h, w]` in [0, 1].
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        let pictures = self.vae.decode(latents.div_scalar(self.vae.scaling_factor));
        pictures.mul_scalar(0.5).add_scalar(0.5).clamp(0.0, 1.0)
    }

    /// Side of the pictures that the model was trained on.
    pub fn image_size(&self) -> usize {
        self.unet_config.sample_size * self.vae_config.downscale()
    }

    /// The forward process that the UNet was trained to reverse.
    pub fn noise_schedule(&self) -> Ddpm {
        Ddpm::new(&self.scheduler)
    }

    /// The source's `model_index.json` without the parts that are not written, such as a safety
    /// checker: diffusers would look for them.
    fn model_index(&self) -> Result<String, ModelError> {
        let path = self.source.join("model_index.json");
        let text = fs::read_to_string(&path)
            .map_err(|e| ModelError::io(&path, "the model's model_index.json", e))?;
        let json = |source| ModelError::Json { path: path.clone(), source };
        let mut index: serde_json::Map<String, Value> =
            serde_json::from_str(&text).map_err(json)?;
        let written = ["scheduler", "text_encoder", "tokenizer", "unet", "vae"];
        for (part, class) in &mut index {
            if class.is_array() && !written.contains(&part.as_str()) {
                *class = json!([null, null]);
            }
        }
        index.insert("requires_safety_checker".to_string(), json!(false));
        serde_json::to_string_pretty(&index).map_err(json)
    }
}

const TEXT_WEIGHTS: &str = "text_encoder/model.safetensors";
const UNET_WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";
const VAE_WEIGHTS: &str = "vae/diffusion_pytorch_model.safetensors";
