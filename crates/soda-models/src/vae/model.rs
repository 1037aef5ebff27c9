//! The autoencoder: pictures in [-1, 1] to a Gaussian over latents, and back.
//!
//! "Auto-Encoding Variational Bayes" (arXiv 1312.6114) as in Latent Diffusion (arXiv 2112.10752);
//! mirrors diffusers' `AutoencoderKL` and `DiagonalGaussianDistribution`.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};

use crate::vae::config::VaeConfig;
use crate::vae::decoder::Decoder;
use crate::vae::encoder::Encoder;

/// The autoencoder.
#[derive(Module, Debug)]
pub struct Vae {
    /// Pictures to moments.
    pub encoder: Encoder,
    /// Latents to pictures.
    pub decoder: Decoder,
    /// Mixes the moments.
    pub quant_conv: Conv2d,
    /// Mixes the latents.
    pub post_quant_conv: Conv2d,
    /// What latents are multiplied by for the denoiser, which wants unit variance.
    pub scaling_factor: f64,
}

impl VaeConfig {
    /// An untrained autoencoder.
    pub fn init(&self, device: &Device) -> Vae {
        let conv1x1 = |channels| Conv2dConfig::new([channels; 2], [1, 1]).init(device);
        Vae {
            encoder: Encoder::init(self, device),
            decoder: Decoder::init(self, device),
            quant_conv: conv1x1(2 * self.latent_channels),
            post_quant_conv: conv1x1(self.latent_channels),
            scaling_factor: self.scaling_factor,
        }
    }
}

/// A Gaussian over latents with independent components, both tensors `[b, c, h', w']`.
#[derive(Debug, Clone)]
pub struct LatentDistribution {
    /// The mean.
    pub mean: Tensor<4>,
    /// The logarithm of the variance.
    pub logvar: Tensor<4>,
}

impl LatentDistribution {
    pub(crate) fn from_moments(moments: Tensor<4>) -> Self {
        let channels = moments.dims()[1] / 2;
        Self {
            mean: moments.clone().narrow(1, 0, channels),
            // The bounds are diffusers'; the variance stays a positive f32 within them.
            logvar: moments.narrow(1, channels, channels).clamp(-30.0, 20.0),
        }
    }

    /// `mean + std noise`, `noise` being `[b, c, h', w']` of unit variance.
    pub fn sample(&self, noise: Tensor<4>) -> Tensor<4> {
        self.mean.clone() + self.std() * noise
    }

    /// The standard deviation, `[b, c, h', w']`.
    pub fn std(&self) -> Tensor<4> {
        self.logvar.clone().mul_scalar(0.5).exp()
    }

    /// The likeliest latents: the mean.
    pub fn mode(&self) -> Tensor<4> {
        self.mean.clone()
    }
}

impl Vae {
    /// Pictures `[b, 3, h, w]` in [-1, 1] to a distribution of unscaled latents.
    pub fn encode(&self, pictures: Tensor<4>) -> LatentDistribution {
        LatentDistribution::from_moments(self.moments(pictures))
    }

    /// Mean and logarithm of the variance, `[b, 2c, h', w']`.
    pub(crate) fn moments(&self, pictures: Tensor<4>) -> Tensor<4> {
        self.quant_conv.forward(self.encoder.forward(pictures))
    }

    /// Unscaled latents `[b, c, h', w']` to pictures `[b, 3, h, w]` in about [-1, 1].
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decoder.forward(self.post_quant_conv.forward(latents))
    }
}
