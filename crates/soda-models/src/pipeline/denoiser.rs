//! The denoiser of a pipeline: a UNet or a transformer.
//!
//! Both predict from noisy latents `[b, c, h, w]`, timesteps and a condition. What else differs between them,
//! such as the packing of latents into tokens, is inside.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor};
use soda_kernels::with_timesteps;

use super::family_name::FamilyName;
use crate::condition::{Condition, Timestep};
use crate::config;
use crate::error::ModelError;
use crate::flux2::{Flux2Config, Flux2Transformer};
use crate::module_enum::module_enum;
use crate::unet::{Unet, UnetConfig};
use crate::weights::ldm::Layout;
use crate::z_image::{ZImageConfig, ZImageTransformer};

/// A denoiser.
#[derive(Debug, Clone)]
pub enum Denoiser {
    /// The UNet of Stable Diffusion.
    Unet(Unet),
    /// The transformer of FLUX.2 klein.
    Flux2(Flux2Transformer),
    /// The transformer of Z-Image.
    ZImage(ZImageTransformer),
}

/// The config of a denoiser.
#[derive(Debug, Clone)]
pub enum DenoiserConfig {
    /// That of a UNet.
    Unet(UnetConfig),
    /// That of the transformer of FLUX.2 klein.
    Flux2(Flux2Config),
    /// That of the transformer of Z-Image.
    ZImage(ZImageConfig),
}

module_enum!(Denoiser { Unet, Flux2, ZImage });

impl Denoiser {
    /// The folder of a UNet in diffusers' layout.
    pub const UNET: &'static str = "unet";
    /// The folder of a transformer in diffusers' layout.
    pub const TRANSFORMER: &'static str = "transformer";

    /// The name of the denoiser's folder in diffusers' layout.
    pub fn folder(&self) -> &'static str {
        match self {
            Self::Unet(_) => Self::UNET,
            Self::Flux2(_) | Self::ZImage(_) => Self::TRANSFORMER,
        }
    }

    /// Predicts the noise, the velocity or the image in noisy latents `sample` `[b, c, h, w]`.
    ///
    /// `timestep` is `[b]`, and `condition` has `b` samples. Returns `[b, c', h, w]`.
    ///
    /// # Panics
    ///
    /// If the UNet is SDXL's and the condition has no [`AddedCondition`](crate::condition::AddedCondition).
    /// If a side of the latents is no multiple of [`DenoiserConfig::patch_size`].
    #[track_caller]
    pub fn forward(
        &self,
        sample: Tensor<4>,
        timestep: impl Into<Timestep>,
        condition: impl Into<Condition>,
    ) -> Tensor<4> {
        let timestep: Timestep = timestep.into();
        // Adapters may change with the timestep.
        with_timesteps(timestep.0.clone(), || match self {
            Self::Unet(unet) => unet.forward(sample, timestep, condition),
            Self::Flux2(transformer) => {
                transformer.forward(sample, timestep, condition.into().text)
            }
            Self::ZImage(transformer) => transformer.forward(sample, timestep, condition),
        })
    }

    /// The dtype of the inputs and of the prediction.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Unet(unet) => unet.conv_in.weight.val().dtype(),
            Self::Flux2(transformer) => transformer.x_embedder.weight.val().dtype(),
            Self::ZImage(transformer) => transformer.all_x_embedder.0.weight.val().dtype(),
        }
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        match self {
            Self::Unet(unet) => unet.conv_in.weight.val().device(),
            Self::Flux2(transformer) => transformer.x_embedder.weight.val().device(),
            Self::ZImage(transformer) => transformer.all_x_embedder.0.weight.val().device(),
        }
    }

    /// The UNet. `None` for a transformer.
    pub fn as_unet(&self) -> Option<&Unet> {
        match self {
            Self::Unet(unet) => Some(unet),
            Self::Flux2(_) | Self::ZImage(_) => None,
        }
    }
}

impl From<Unet> for Denoiser {
    fn from(unet: Unet) -> Self {
        Self::Unet(unet)
    }
}

impl From<Flux2Transformer> for Denoiser {
    fn from(transformer: Flux2Transformer) -> Self {
        Self::Flux2(transformer)
    }
}

impl From<ZImageTransformer> for Denoiser {
    fn from(transformer: ZImageTransformer) -> Self {
        Self::ZImage(transformer)
    }
}

impl DenoiserConfig {
    /// Reads the config of the denoiser in the model directory `dir`.
    ///
    /// # Errors
    ///
    /// [`ModelError`] for a file that is missing, broken or not supported.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let config = |folder: &str| dir.join(folder).join("config.json");
        Ok(match FamilyName::read(dir)? {
            FamilyName::StableDiffusion => Self::Unet(config::read(&config(Denoiser::UNET))?),
            FamilyName::Flux2Klein => Self::Flux2(config::read(&config(Denoiser::TRANSFORMER))?),
            FamilyName::ZImage => Self::ZImage(config::read(&config(Denoiser::TRANSFORMER))?),
        })
    }

    /// Makes a denoiser with random weights.
    pub fn init(&self, device: &Device) -> Denoiser {
        match self {
            Self::Unet(config) => Denoiser::Unet(config.init(device)),
            Self::Flux2(config) => Denoiser::Flux2(config.init(device)),
            Self::ZImage(config) => Denoiser::ZImage(config.init(device)),
        }
    }

    /// Channels of the input: those of the latents, and for inpainting those of mask and masked image.
    pub fn in_channels(&self) -> usize {
        match self {
            Self::Unet(config) => config.in_channels,
            Self::Flux2(config) => config.in_channels,
            Self::ZImage(config) => config.in_channels,
        }
    }

    /// The number of latents, as the denoiser takes them, along one side of what it makes a token of.
    pub fn patch_size(&self) -> usize {
        match self {
            Self::Unet(_) | Self::Flux2(_) => 1,
            Self::ZImage(_) => ZImageConfig::PATCH,
        }
    }

    /// The most tokens of an image along height and width. `None` without a limit.
    pub fn most_tokens(&self) -> Option<[usize; 2]> {
        match self {
            Self::Unet(_) | Self::Flux2(_) => None,
            Self::ZImage(config) => Some([config.axes_lens[1], config.axes_lens[2]]),
        }
    }

    /// Side of the latents that the denoiser was trained on. `None` where the config does not say.
    pub fn sample_size(&self) -> Option<usize> {
        match self {
            Self::Unet(config) => Some(config.sample_size),
            Self::Flux2(_) | Self::ZImage(_) => None,
        }
    }

    /// The layout of a transformer in a file of the original names, in which all keys begin with `prefix`.
    /// `None` for a UNet, whose files have the other networks too.
    pub(super) fn original_layout(&self, prefix: &'static str) -> Option<Layout> {
        match self {
            Self::Unet(_) => None,
            Self::Flux2(config) => Some(config.original_layout(prefix)),
            Self::ZImage(config) => Some(config.original_layout(prefix)),
        }
    }

    /// The config of a UNet. `None` for a transformer.
    pub fn as_unet(&self) -> Option<&UnetConfig> {
        match self {
            Self::Unet(config) => Some(config),
            Self::Flux2(_) | Self::ZImage(_) => None,
        }
    }
}
