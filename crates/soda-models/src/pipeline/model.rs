//! The pipeline, and its conversions between images and latents.

use std::path::PathBuf;

use burn::tensor::{DType, Device, FloatDType, Tensor};

use super::load_warning::LoadWarning;
use crate::clip::ClipTextModel;
use crate::scheduler::{ForwardProcess, SchedulerConfig};
use crate::tokenizer::Tokenizer;
use crate::unet::{Unet, UnetConfig};
use crate::vae::{Vae, VaeConfig};

/// The networks and settings of a Stable Diffusion model.
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
#[derive(Debug)]
pub struct Pipeline {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The text encoder.
    pub text_encoder: ClipTextModel,
    /// The second text encoder of SDXL.
    pub second_text_encoder: Option<SecondTextEncoder>,
    /// The denoiser.
    pub denoiser: Unet,
    /// The autoencoder between images and latents.
    pub vae: Vae,
    /// The config of the noise schedule and of the samplers.
    pub scheduler: SchedulerConfig,
    /// The config of the denoiser.
    pub denoiser_config: UnetConfig,
    /// The config of the autoencoder.
    pub vae_config: VaeConfig,
    /// The directory from which configs and tokenizers were read. [`Pipeline::save`] copies them from there.
    pub source: PathBuf,
    /// What was unusual about the files that were read.
    pub warnings: Vec<LoadWarning>,
    /// The device of all networks.
    pub device: Device,
}

/// SDXL's second text encoder. Its hidden states are concatenated with those of the first one.
#[derive(Debug)]
pub struct SecondTextEncoder {
    /// The tokenizer. Its padding differs from the first one's.
    pub tokenizer: Tokenizer,
    /// The text encoder, which also gives SDXL's pooled output.
    pub text_encoder: ClipTextModel,
    /// Whether an empty negative prompt is encoded as zeros instead of as an empty text.
    pub force_zeros_for_empty_prompt: bool,
}

impl Pipeline {
    /// Side of the images that the model was trained on, in pixels.
    pub fn image_size(&self) -> usize {
        self.denoiser_config.sample_size * self.vae_config.downscale_factor()
    }

    /// The forward process that the denoiser was trained to reverse.
    pub fn forward_process(&self) -> ForwardProcess {
        ForwardProcess::new(&self.scheduler)
    }

    /// Decodes scaled latents `[n, c, h', w']` to images `[n, 3, h, w]` in [0, 1], as f32.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        unit_scale(self.vae.decode(self.unscaled(latents))).clamp(0.0, 1.0)
    }

    /// Encodes images `[n, 3, h, w]` in [0, 1] to the mode of their scaled latents, `[n, c, h', w']`, as f32.
    ///
    /// With `tiling`, large images are encoded in tiles, which bounds memory.
    pub fn encode(&self, images: Tensor<4>, tiling: bool) -> Tensor<4> {
        let images = images.mul_scalar(2.0).sub_scalar(1.0).cast(self.vae_dtype());
        let latents = if tiling {
            self.vae.encode_tiled(images, &self.vae_config.tiling())
        } else {
            self.vae.encode(images)
        };
        latents.mode().cast(FloatDType::F32).mul_scalar(self.vae.scaling_factor)
    }

    /// Latents in the autoencoder's scale and dtype.
    pub(super) fn unscaled(&self, latents: Tensor<4>) -> Tensor<4> {
        latents.div_scalar(self.vae.scaling_factor).cast(self.vae_dtype())
    }

    fn vae_dtype(&self) -> DType {
        self.vae.quant_conv.weight.val().dtype()
    }

    pub(super) fn denoiser_dtype(&self) -> DType {
        self.denoiser.conv_in.weight.val().dtype()
    }
}

/// Maps pixels from [-1, 1] to [0, 1], as f32 and without a clamp.
pub(super) fn unit_scale(images: Tensor<4>) -> Tensor<4> {
    images.cast(FloatDType::F32).mul_scalar(0.5).add_scalar(0.5)
}
