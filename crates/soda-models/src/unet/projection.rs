//! The projections around a transformer's blocks: linear layers in SD 2 and SDXL, 1x1 convolutions in SD 1.
//!
//! On tokens both are the same matrix product. The derive macro of burn gives each variant of an enum its own
//! level in a parameter's path, but the checkpoint's key is `proj_in.weight` for both. So [`Module`] is
//! implemented by hand, and every method delegates to the layer.

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use soda_kernels::linear_residual;

use crate::layers::project_residual;

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

/// Evaluates an expression of the layer.
macro_rules! of_layer {
    ($projection:expr, $layer:ident => $value:expr) => {
        match $projection {
            Projection::Linear($layer) => $value,
            Projection::Conv($layer) => $value,
        }
    };
}

/// Makes a projection of the same form from an expression of the layer.
macro_rules! with_layer {
    ($projection:expr, $layer:ident => $value:expr) => {
        match $projection {
            Projection::Linear($layer) => Projection::Linear($value),
            Projection::Conv($layer) => Projection::Conv($value),
        }
    };
}

impl Module for Projection {
    fn collect_devices(&self, devices: Devices) -> Devices {
        of_layer!(self, layer => layer.collect_devices(devices))
    }

    fn fork(self, device: &Device) -> Self {
        with_layer!(self, layer => layer.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        with_layer!(self, layer => layer.to_device(device))
    }

    fn train(self) -> Self {
        with_layer!(self, layer => layer.train())
    }

    fn valid(&self) -> Self {
        with_layer!(self, layer => layer.valid())
    }

    fn materialize(self) -> Self {
        with_layer!(self, layer => layer.materialize())
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        of_layer!(self, layer => layer.visit(visitor));
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        with_layer!(self, layer => layer.map(mapper))
    }
}

impl ModuleDisplayDefault for Projection {
    fn content(&self, content: Content) -> Option<Content> {
        of_layer!(self, layer => layer.content(content))
    }

    fn num_params(&self) -> usize {
        of_layer!(self, layer => Module::num_params(layer))
    }
}

impl ModuleDisplay for Projection {}

impl std::fmt::Display for Projection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        of_layer!(self, layer => layer.fmt(f))
    }
}
