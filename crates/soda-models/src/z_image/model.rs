//! The transformer: a denoiser of latents, conditioned on a timestep and on text.
//!
//! Image and text first pass blocks of their own, and then common ones. The fields are the checkpoint's keys.
//! Mirrors diffusers' `ZImageTransformer2DModel`.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor};

use super::block::ZImageBlock;
use super::by_patch::ByPatch;
use super::config::{AXES, ZImageConfig};
use super::final_layer::FinalLayer;
use crate::condition::{Condition, Timestep};
use crate::layers::project;
use crate::rotary::RotaryAxes;
use crate::stages;
use crate::unet::sinusoidal_embedding;

/// The timestep of pure noise, a constant in diffusers' pipeline.
const NOISE: f64 = 1000.0;

/// Number of sinusoids of the timestep, a constant in diffusers.
const SINUSOIDS: usize = 256;

/// Width inside the MLP of the timestep, a constant in diffusers.
const TIME_MLP_WIDTH: usize = 1024;

/// The transformer of Z-Image. [`ZImageConfig::init`] makes one, and [`crate::weights::load`] loads its
/// weights.
#[derive(Module, Debug)]
pub struct ZImageTransformer {
    /// Linear layer from patches of latents to tokens.
    pub all_x_embedder: ByPatch<Linear>,
    /// The last layer, from tokens to patches.
    pub all_final_layer: ByPatch<FinalLayer>,
    /// Blocks on the image alone.
    pub noise_refiner: Vec<ZImageBlock>,
    /// Blocks on the text alone, which the timestep does not modulate.
    pub context_refiner: Vec<ZImageBlock>,
    /// Embedding of the timestep.
    pub t_embedder: TimeEmbedder,
    /// Norm of the text's hidden states, and linear layer to tokens.
    pub cap_embedder: (RmsNorm, Linear),
    /// The token that pads an image, `[1, c]`.
    pub x_pad_token: Param<Tensor<2>>,
    /// The token that pads a text, `[1, c]`.
    pub cap_pad_token: Param<Tensor<2>>,
    /// Blocks on image and text together.
    pub layers: Vec<ZImageBlock>,
    /// The axes of the rotary position embeddings.
    #[module(skip)]
    pub rotary: RotaryAxes<AXES>,
    /// Factor of the timestep.
    pub t_scale: f64,
}

/// The MLP of the timestep's sinusoids.
#[derive(Module, Debug)]
pub struct TimeEmbedder {
    /// The layers, with dropout in the place of the activation. The triple gives them the keys `mlp.0` and
    /// `mlp.2`.
    pub mlp: (Linear, Dropout, Linear),
}

impl ZImageConfig {
    /// Makes a transformer with random weights.
    pub fn init(&self, device: &Device) -> ZImageTransformer {
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let blocks = |count: usize, modulated| {
            (0..count).map(|_| ZImageBlock::init(self, modulated, device)).collect()
        };
        let pad_token = || Param::from_tensor(Tensor::zeros([1, self.dim], device));
        ZImageTransformer {
            all_x_embedder: ByPatch(linear(self.patch_channels(), self.dim)),
            all_final_layer: ByPatch(FinalLayer::init(self, device)),
            noise_refiner: blocks(self.n_refiner_layers, true),
            context_refiner: blocks(self.n_refiner_layers, false),
            t_embedder: TimeEmbedder {
                mlp: (
                    linear(SINUSOIDS, TIME_MLP_WIDTH),
                    DropoutConfig::new(0.0).init(),
                    linear(TIME_MLP_WIDTH, self.time_width()),
                ),
            },
            cap_embedder: (
                RmsNormConfig::new(self.cap_feat_dim).with_epsilon(self.norm_eps).init(device),
                linear(self.cap_feat_dim, self.dim),
            ),
            x_pad_token: pad_token(),
            cap_pad_token: pad_token(),
            layers: blocks(self.n_layers, true),
            rotary: RotaryAxes::new(&self.axes_dims, self.rope_theta),
            t_scale: self.t_scale,
        }
    }
}

impl ZImageTransformer {
    /// Predicts the velocity in noisy latents, `noise - x0`. diffusers' model returns its negative.
    ///
    /// `sample` is `[b, c, h, w]` with even sides: patches of 2 x 2 are tokens. `timestep` is `[b]`, from 0
    /// (an image) to 1000 (noise). The text of `condition` is `[b, m, d]` with the config's `cap_feat_dim`,
    /// and of each sample only the tokens in the condition's `lengths` are read. Returns `[b, c, h, w]`.
    ///
    /// # Panics
    ///
    /// If a side of `sample` is odd.
    pub fn forward(
        &self,
        sample: Tensor<4>,
        timestep: impl Into<Timestep>,
        condition: impl Into<Condition>,
    ) -> Tensor<4> {
        stages::forward(self, sample, timestep.into(), condition.into())
    }

    /// Embeds the timestep, `[b, c]`.
    pub(super) fn embed_time(&self, timestep: Timestep) -> Tensor<2> {
        let (first, _, second) = &self.t_embedder.mlp;
        let dtype = first.weight.val().dtype();
        // The order of the operations is that of the pipeline: the last bit of 1000 is 6e-5 of a radian.
        let time = timestep.0.neg().add_scalar(NOISE).div_scalar(NOISE).mul_scalar(self.t_scale);
        let sinusoids = sinusoidal_embedding(time, SINUSOIDS, true, 0.0);
        project(second, silu(project(first, sinusoids.cast(dtype))))
    }
}
