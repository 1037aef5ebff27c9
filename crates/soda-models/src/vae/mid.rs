//! The lowest resolution of the encoder and of the decoder: residual, attention, residual.
//!
//! Mirrors diffusers' `UNetMidBlock2D` and the single-headed `Attention` with a group norm.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, GroupNorm, GroupNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use crate::unet::attention::multi_head;
use crate::unet::resnet::{ResnetBlock, ResnetConfig};

/// Epsilon of every group norm in the autoencoder; a constant in diffusers too.
pub(crate) const EPS: f64 = 1e-6;

/// A residual block of the autoencoder, which has no timestep.
pub(crate) fn resnet(from: usize, to: usize, groups: usize, device: &Device) -> ResnetBlock {
    ResnetConfig { channels_in: from, channels_out: to, time_embed_dim: None, groups, eps: EPS }
        .init(device)
}

/// Attention of every pixel over all pixels, around a skip connection.
#[derive(Module, Debug)]
pub struct PixelAttention {
    /// Norm of the input.
    pub group_norm: GroupNorm,
    /// Queries.
    pub to_q: Linear,
    /// Keys.
    pub to_k: Linear,
    /// Values.
    pub to_v: Linear,
    /// Output projection; a pair because its key is `to_out.0`, the dropout being `to_out.1`.
    pub to_out: (Linear, Dropout),
}

impl PixelAttention {
    /// An untrained layer.
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

    /// `[b, c, h, w]` to the same.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let shape @ [batch, channels, height, width] = x.dims();
        let tokens = self.group_norm.forward(x.clone());
        let tokens = tokens.reshape([batch, channels, height * width]).swap_dims(1, 2);
        let q = self.to_q.forward(tokens.clone());
        let k = self.to_k.forward(tokens.clone());
        let v = self.to_v.forward(tokens);
        let out = self.to_out.0.forward(multi_head(q, k, v, 1, None));
        out.swap_dims(1, 2).reshape(shape) + x
    }
}

/// An attention layer between two residual blocks.
#[derive(Module, Debug)]
pub struct MidBlock {
    /// The attention layer.
    pub attentions: Vec<PixelAttention>,
    /// The residual blocks, one more than attention layers.
    pub resnets: Vec<ResnetBlock>,
}

impl MidBlock {
    /// An untrained block.
    pub fn init(channels: usize, groups: usize, device: &Device) -> Self {
        Self {
            attentions: vec![PixelAttention::init(channels, groups, device)],
            resnets: (0..2).map(|_| resnet(channels, channels, groups, device)).collect(),
        }
    }

    /// `[b, c, h, w]` to the same.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mut x = self.resnets[0].forward(x, None);
        for (attention, resnet) in self.attentions.iter().zip(&self.resnets[1..]) {
            x = resnet.forward(attention.forward(x), None);
        }
        x
    }
}
