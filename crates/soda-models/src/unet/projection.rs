//! The projections around a transformer's blocks: linear layers in SD 2 and SDXL, 1x1 convolutions in SD 1.
//!
//! On tokens both are the same matrix product, and the checkpoint's key is `proj_in.weight` for both.

use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use soda_kernels::linear_residual;

use crate::layers::project_residual;
use crate::module_enum::module_enum;

/// A pointwise projection in one of two forms.
#[derive(Debug, Clone)]
pub enum Projection {
    /// A linear layer.
    Linear(Linear),
    /// A 1x1 convolution.
    Conv(Conv2d),
}

impl Projection {
    /// Makes a projection with random weights from `channels` to `channels`: a linear layer if `linear`, else
    /// a convolution.
    pub fn init(channels: usize, linear: bool, device: &Device) -> Self {
        if linear {
            Self::Linear(LinearConfig::new(channels, channels).init(device))
        } else {
            Self::Conv(Conv2dConfig::new([channels; 2], [1, 1]).init(device))
        }
    }

    /// Projects tokens `[b, n, c]` and adds an optional `residual` `[b, n, c]`. Returns `[b, n, c]`.
    pub fn forward(&self, tokens: Tensor<3>, residual: Option<Tensor<3>>) -> Tensor<3> {
        match self {
            Self::Linear(layer) => project_residual(layer, tokens, residual),
            // A matrix product, without im2col.
            Self::Conv(layer) => {
                let weight = layer.weight.val();
                let [channels_out, channels_in, _, _] = weight.dims();
                let weight = || weight.reshape([channels_out, channels_in]).transpose();
                let bias = layer.bias.as_ref().map(|bias| bias.val());
                linear_residual(tokens, weight, bias, residual)
            }
        }
    }
}

module_enum!(Projection { Linear, Conv });
