//! The middle block of encoder and decoder, at the lowest resolution.
//!
//! Mirrors diffusers' `UNetMidBlock2D` and the single-headed `Attention` with a group norm.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, GroupNorm, GroupNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use soda_kernels::group_norm;

use crate::layers::{multi_head, project};
use crate::unet::{ResnetBlock, ResnetConfig};

/// Epsilon of every group norm in the autoencoder, a constant in diffusers.
pub(crate) const EPS: f64 = 1e-6;

/// Makes a residual block without timestep.
pub(crate) fn resnet(from: usize, to: usize, groups: usize, device: &Device) -> ResnetBlock {
    ResnetConfig { channels_in: from, channels_out: to, time_embed_dim: None, groups, eps: EPS }
        .init(device)
}

/// Single-headed self-attention of pixels, with a residual connection.
#[derive(Module, Debug)]
pub struct PixelAttention {
    /// Group norm of the input.
    pub group_norm: GroupNorm,
    /// Query projection.
    pub to_q: Linear,
    /// Key projection.
    pub to_k: Linear,
    /// Value projection.
    pub to_v: Linear,
    /// Output projection and dropout. The pair gives the projection its key `to_out.0`.
    pub to_out: (Linear, Dropout),
}

impl PixelAttention {
    /// Makes a layer with random weights.
    pub fn init(channels: usize, groups: usize, device: &Device) -> Self {
        let linear = || LinearConfig::new(channels, channels).init(device);
        Self {
            group_norm: GroupNormConfig::new(groups, channels).with_epsilon(EPS).init(device),
            to_q: linear(),
            to_k: linear(),
            to_v: linear(),
            to_out: (linear(), DropoutConfig::new(0.0).init()),
        }
    }

    /// Computes the layer for `x` `[b, c, h, w]`. Returns the same shape.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let normed = group_norm(&self.group_norm, x.clone(), false);
        let tokens = normed.permute([0, 2, 3, 1]).reshape([batch, height * width, channels]);
        let q = project(&self.to_q, tokens.clone());
        let k = project(&self.to_k, tokens.clone());
        let v = project(&self.to_v, tokens);
        let out = project(&self.to_out.0, multi_head(q, k, v, 1, None));
        out.reshape([batch, height, width, channels]).permute([0, 3, 1, 2]) + x
    }
}

/// An attention layer between two residual blocks.
#[derive(Module, Debug)]
pub struct MidBlock {
    /// Attention layers, one less than residual blocks.
    pub attentions: Vec<PixelAttention>,
    /// Residual blocks.
    pub resnets: Vec<ResnetBlock>,
}

impl MidBlock {
    /// Makes a block with random weights.
    pub fn init(channels: usize, groups: usize, device: &Device) -> Self {
        Self {
            attentions: vec![PixelAttention::init(channels, groups, device)],
            resnets: (0..2).map(|_| resnet(channels, channels, groups, device)).collect(),
        }
    }

    /// Computes the block for `x` `[b, c, h, w]`. Returns the same shape.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mut x = self.resnets[0].forward(x, None);
        for (attention, resnet) in self.attentions.iter().zip(&self.resnets[1..]) {
            x = resnet.forward(attention.forward(x), None);
        }
        x
    }
}
