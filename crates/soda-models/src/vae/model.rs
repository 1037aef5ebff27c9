//! The autoencoder: images in [-1, 1] to a Gaussian over latents, and latents to images.
//!
//! "Auto-Encoding Variational Bayes" (arXiv 1312.6114) as in Latent Diffusion (arXiv 2112.10752). Mirrors
//! diffusers' `AutoencoderKL`, `AutoencoderKLFlux2` and `DiagonalGaussianDistribution`.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use soda_kernels::conv2d;

use crate::vae::config::{VaeClass, VaeConfig};
use crate::vae::decoder::Decoder;
use crate::vae::encoder::Encoder;
use crate::vae::statistics::LatentStatistics;

/// The autoencoder. [`VaeConfig::init`] makes one, and [`crate::weights::load`] loads its weights.
#[derive(Module, Debug)]
pub struct Vae {
    /// The encoder from images to moments.
    pub encoder: Encoder,
    /// The decoder from latents to images.
    pub decoder: Decoder,
    /// 1x1 convolution of the moments. `None` for the autoencoders of some transformers.
    pub quant_conv: Option<Conv2d>,
    /// 1x1 convolution of the latents. `None` for the autoencoders of some transformers.
    pub post_quant_conv: Option<Conv2d>,
    /// The statistics of FLUX.2's latents.
    pub bn: Option<LatentStatistics>,
    /// Factor that gives latents unit variance, as the denoiser needs it. 1 if there are statistics.
    pub scaling_factor: f64,
    /// What is subtracted of the latents before. 0 for Stable Diffusion.
    pub shift_factor: f64,
}

impl VaeConfig {
    /// Makes an autoencoder with random weights.
    pub fn init(&self, device: &Device) -> Vae {
        let conv1x1 = |channels| Conv2dConfig::new([channels; 2], [1, 1]).init(device);
        Vae {
            encoder: Encoder::init(self, device),
            decoder: Decoder::init(self, device),
            quant_conv: self.use_quant_conv.then(|| conv1x1(2 * self.latent_channels)),
            post_quant_conv: self.use_post_quant_conv.then(|| conv1x1(self.latent_channels)),
            bn: (self.class == VaeClass::Flux2).then(|| {
                LatentStatistics::init(self.patch_channels(), self.batch_norm_eps, device)
            }),
            scaling_factor: self.scaling_factor,
            shift_factor: self.shift_factor.unwrap_or(0.0),
        }
    }
}

/// The posterior of an image: a Gaussian over latents with independent components. Both tensors are `[b, c,
/// h', w']`.
#[derive(Debug, Clone)]
pub struct LatentDistribution {
    /// Mean of the latents.
    pub mean: Tensor<4>,
    /// Logarithm of the variance.
    pub logvar: Tensor<4>,
}

impl LatentDistribution {
    pub(crate) fn from_moments(moments: Tensor<4>) -> Self {
        let channels = moments.dims()[1] / 2;
        Self {
            mean: moments.clone().narrow(1, 0, channels),
            // The bounds are diffusers'. Within them the variance is a positive f32.
            logvar: moments.narrow(1, channels, channels).clamp(-30.0, 20.0),
        }
    }

    /// Samples latents, `mean + std noise`. `noise` is `[b, c, h', w']` of unit variance.
    pub fn sample(&self, noise: Tensor<4>) -> Tensor<4> {
        self.mean.clone() + self.std() * noise
    }

    /// The standard deviation, `[b, c, h', w']`.
    pub fn std(&self) -> Tensor<4> {
        self.logvar.clone().mul_scalar(0.5).exp()
    }

    /// The mode of the posterior, which is its mean, `[b, c, h', w']`.
    pub fn mode(&self) -> Tensor<4> {
        self.mean.clone()
    }
}

impl Vae {
    /// Encodes images `[b, 3, h, w]` in [-1, 1] to the posterior of unscaled latents.
    pub fn encode(&self, images: Tensor<4>) -> LatentDistribution {
        LatentDistribution::from_moments(self.moments(images))
    }

    /// Scales latents `[b, c, h', w']` to those that a denoiser sees, `[b, c p², h' / p, w' / p]` with the
    /// config's patch size `p`, as f32.
    pub fn normalize(&self, latents: Tensor<4>) -> Tensor<4> {
        match &self.bn {
            Some(statistics) => statistics.normalize(latents),
            None => {
                let latents = latents.cast(FloatDType::F32);
                latents.sub_scalar(self.shift_factor).mul_scalar(self.scaling_factor)
            }
        }
    }

    /// The inverse of [`Vae::normalize`], as f32.
    pub fn denormalize(&self, latents: Tensor<4>) -> Tensor<4> {
        match &self.bn {
            Some(statistics) => statistics.denormalize(latents),
            None => {
                let latents = latents.cast(FloatDType::F32);
                latents.div_scalar(self.scaling_factor).add_scalar(self.shift_factor)
            }
        }
    }

    /// Encodes images to mean and logarithm of the variance, `[b, 2c, h', w']`.
    pub(crate) fn moments(&self, images: Tensor<4>) -> Tensor<4> {
        after(&self.quant_conv, self.encoder.forward(images))
    }

    /// Decodes unscaled latents `[b, c, h', w']` to images `[b, 3, h, w]` in about [-1, 1].
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decoder.forward(after(&self.post_quant_conv, latents))
    }

    /// A weight of the encoder, for its dtype, and for the device of all weights.
    pub fn any_weight(&self) -> Tensor<4> {
        self.encoder.conv_in.weight.val()
    }

    /// The dtype in which latents are decoded.
    pub fn decoder_dtype(&self) -> DType {
        self.decoder.conv_in.weight.dtype()
    }
}

/// Applies a convolution, if there is one.
fn after(conv: &Option<Conv2d>, x: Tensor<4>) -> Tensor<4> {
    match conv {
        Some(conv) => conv2d(conv, x),
        None => x,
    }
}
