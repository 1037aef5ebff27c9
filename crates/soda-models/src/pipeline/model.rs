//! The pipeline, and its conversions between images and latents.

use std::path::PathBuf;

use burn::tensor::{DType, Device, FloatDType, Tensor};

use super::denoiser::{Denoiser, DenoiserConfig};
use super::load_warning::LoadWarning;
use super::text_encoders::TextEncoders;
use crate::scheduler::{ForwardProcess, SchedulerConfig};
use crate::vae::{Tiling, Vae, VaeConfig};

/// The networks and settings of a model.
///
/// The fields are public: a trainer takes the denoiser, adapts it and puts it back.
///
/// ```no_run
/// use std::path::Path;
///
/// use burn::tensor::Device;
/// use soda_models::pipeline::{GenerateConfig, Pipeline};
///
/// let pipeline = Pipeline::load(Path::new("examples/toybox/base"), &Device::default())?;
/// let config = GenerateConfig { prompts: vec!["a red mug".to_owned()], ..Default::default() };
/// let images = pipeline.generate(&config, &mut |step, steps| eprintln!("{step}/{steps}"))?;
/// images[0].save("mug.png").expect("a writable folder");
/// # Ok::<(), soda_models::ModelError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// The text encoders with their tokenizers.
    pub text: TextEncoders,
    /// The denoiser.
    pub denoiser: Denoiser,
    /// The autoencoder between images and latents.
    pub vae: Vae,
    /// The config of the noise schedule and of the samplers.
    pub scheduler: SchedulerConfig,
    /// The config of the denoiser.
    pub denoiser_config: DenoiserConfig,
    /// The config of the autoencoder.
    pub vae_config: VaeConfig,
    /// Side of the images that are drawn and trained unless a request has another size, in pixels. `None` for
    /// that of the model's training.
    pub resolution: Option<usize>,
    /// The directory from which configs and tokenizers were read. [`Pipeline::save`] copies them from there.
    pub source: PathBuf,
    /// Whether the model is distilled to draw in few steps and without guidance.
    pub is_distilled: bool,
    /// What was unusual about the files that were read.
    pub warnings: Vec<LoadWarning>,
    /// The device of all networks.
    pub device: Device,
}

impl Pipeline {
    /// Side of the images that are drawn and trained unless a request has another size, in pixels: the
    /// [`resolution`](Self::resolution), or else that of the model's training.
    pub fn image_size(&self) -> usize {
        self.resolution.unwrap_or_else(|| self.native_image_size())
    }

    /// Side of the images that the model was trained on, in pixels.
    fn native_image_size(&self) -> usize {
        match self.denoiser_config.sample_size() {
            Some(latents) => latents * self.vae_config.pixels_per_patch(),
            None => self.vae_config.sample_size,
        }
    }

    /// The number of pixels for each token of the denoiser along one side. Both sides of an image are
    /// multiples of it.
    pub fn pixels_per_token(&self) -> usize {
        self.vae_config.pixels_per_patch() * self.denoiser_config.patch_size()
    }

    /// The scale of guidance that the model is usually drawn with, in the terms of diffusers' pipeline.
    pub fn default_guidance_scale(&self) -> f64 {
        match self.denoiser {
            Denoiser::ZImage(_) if self.is_distilled => 0.0,
            _ if self.is_distilled => 1.0,
            Denoiser::Unet(_) | Denoiser::ZImage(_) => 5.0,
            Denoiser::Flux2(_) => 4.0,
        }
    }

    /// The factor `s` of guidance, `negative + s (prompted - negative)`, for a scale in the terms of
    /// diffusers' pipeline. `None` without guidance.
    ///
    /// The pipeline of Z-Image has `s = 1 + scale`, and no guidance at 0 and below. Those of all other models
    /// have `s = scale`, and no guidance at 1 and below. A distilled FLUX.2 klein has no guidance at any
    /// scale.
    pub fn guidance_factor(&self, scale: f64) -> Option<f64> {
        let factor = match self.denoiser {
            Denoiser::ZImage(_) => 1.0 + scale,
            Denoiser::Flux2(_) if self.is_distilled => return None,
            Denoiser::Unet(_) | Denoiser::Flux2(_) => scale,
        };
        (factor > 1.0).then_some(factor)
    }

    /// The forward process that the denoiser was trained to reverse.
    pub fn forward_process(&self) -> ForwardProcess {
        ForwardProcess::new(&self.scheduler)
    }

    /// Decodes scaled latents `[n, c, h', w']` to images `[n, 3, h, w]` in [0, 1], as f32.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decode_in(latents, None).clamp(0.0, 1.0)
    }

    /// Decodes scaled latents as [`Pipeline::decode`] does, without the clamp. With `tiling`, images larger
    /// than a tile are decoded in tiles, which bounds memory.
    pub fn decode_in(&self, latents: Tensor<4>, tiling: Option<Tiling>) -> Tensor<4> {
        let latents = self.unscaled(latents);
        unit_scale(match tiling {
            Some(tiling) => self.vae.decode_tiled(latents, &tiling),
            None => self.vae.decode(latents),
        })
    }

    /// Encodes images `[n, 3, h, w]` in [0, 1] to the mode of their scaled latents, `[n, c, h', w']`, as f32.
    ///
    /// With `tiling`, images larger than a tile are encoded in tiles, which bounds memory.
    pub fn encode(&self, images: Tensor<4>, tiling: Option<Tiling>) -> Tensor<4> {
        let images = images.mul_scalar(2.0).sub_scalar(1.0).cast(self.vae_dtype());
        let latents = match tiling {
            Some(tiling) => self.vae.encode_tiled(images, &tiling),
            None => self.vae.encode(images),
        };
        self.vae.normalize(latents.mode())
    }

    /// Latents in the autoencoder's scale and the dtype of its decoder.
    fn unscaled(&self, latents: Tensor<4>) -> Tensor<4> {
        self.vae.denormalize(latents).cast(self.vae.decoder_dtype())
    }

    fn vae_dtype(&self) -> DType {
        self.vae.any_weight().dtype()
    }
}

/// Maps pixels from [-1, 1] to [0, 1], as f32 and without a clamp.
pub(super) fn unit_scale(images: Tensor<4>) -> Tensor<4> {
    images.cast(FloatDType::F32).mul_scalar(0.5).add_scalar(0.5)
}
