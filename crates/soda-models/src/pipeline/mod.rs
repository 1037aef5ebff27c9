//! Text to pictures: the networks of a diffusers directory put together.
//!
//! ```text
//! prompt -> tokens -> text states;  noise -> calls of (UNet, guidance, sampler) -> latents -> picture
//! ```
//!
//! Mirrors diffusers' `StableDiffusionPipeline`, `StableDiffusionXLPipeline` and their variants from
//! picture to picture. Which of them a directory is, its configs say.

mod directory;
mod generate;
mod networks;
mod prompt;
mod single_file;
mod words;

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, FloatDType, Tensor};

pub use directory::{LoadOptions, UnetPrecision};
pub use generate::{GenerateConfig, Start};
pub use networks::Networks;
pub use prompt::TextIds;
pub use words::Word;

use crate::clip::text::ClipTextModel;
use crate::scheduler::{Ddpm, SchedulerConfig};
use crate::tokenizer::Tokenizer;
use crate::unet::{Unet, UnetConfig};
use crate::vae::{Vae, VaeConfig};

/// The networks and settings of a Stable Diffusion model.
///
/// The fields are public: a trainer takes the UNet out, adapts it and puts it back.
#[derive(Debug)]
pub struct Pipeline {
    /// Text to tokens.
    pub tokenizer: Tokenizer,
    /// Tokens to text states.
    pub text_encoder: ClipTextModel,
    /// SDXL's second reader of the prompt.
    pub second: Option<SecondEncoder>,
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

/// SDXL's second text encoder, whose states stand beside the first one's.
#[derive(Debug)]
pub struct SecondEncoder {
    /// Text to tokens; its padding differs from the first one's.
    pub tokenizer: Tokenizer,
    /// Tokens to text states and to a projected summary.
    pub text_encoder: ClipTextModel,
    /// Whether an empty negative prompt is nothing at all rather than the empty text.
    pub zeros_for_empty_prompt: bool,
}

impl Pipeline {
    /// Side of the pictures that the model was trained on.
    pub fn image_size(&self) -> usize {
        self.unet_config.sample_size * self.vae_config.downscale()
    }

    /// The forward process that the UNet was trained to reverse.
    pub fn noise_schedule(&self) -> Ddpm {
        Ddpm::new(&self.scheduler)
    }

    /// Latents `[n, c, h', w']` to pictures `[n, 3, h, w]` in [0, 1], as f32.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        unit_scale(self.vae.decode(self.unscaled(latents))).clamp(0.0, 1.0)
    }

    /// Pictures `[n, 3, h, w]` in [0, 1] to the likeliest scaled latents `[n, c, h', w']`, as f32.
    pub fn encode(&self, pictures: Tensor<4>, tiling: bool) -> Tensor<4> {
        let pictures = pictures.mul_scalar(2.0).sub_scalar(1.0).cast(self.vae_dtype());
        let latents = if tiling {
            self.vae.encode_tiled(pictures, &self.vae_config.tiling())
        } else {
            self.vae.encode(pictures)
        };
        latents.mode().cast(FloatDType::F32).mul_scalar(self.vae.scaling_factor)
    }

    /// Latents as the autoencoder has them.
    fn unscaled(&self, latents: Tensor<4>) -> Tensor<4> {
        latents.div_scalar(self.vae.scaling_factor).cast(self.vae_dtype())
    }

    fn vae_dtype(&self) -> DType {
        self.vae.quant_conv.weight.val().dtype()
    }

    fn unet_dtype(&self) -> DType {
        self.unet.conv_in.weight.val().dtype()
    }
}

/// What people call the model in `dir`: the directory's name, or `owner/name` of one that lies in a
/// hub's cache, whose directories are called after commits.
pub fn model_name(dir: &Path) -> String {
    let mut above = dir.ancestors().filter_map(|dir| dir.file_name()?.to_str());
    let last = above.next().unwrap_or_default();
    let repository = match (above.next(), above.next()) {
        (Some("snapshots"), Some(folder)) => folder.strip_prefix("models--"),
        _ => None,
    };
    repository.map_or_else(|| last.to_owned(), |name| name.replacen("--", "/", 1))
}

/// Pictures in [-1, 1] to [0, 1], as f32, without a clamp.
fn unit_scale(pictures: Tensor<4>) -> Tensor<4> {
    pictures.cast(FloatDType::F32).mul_scalar(0.5).add_scalar(0.5)
}
