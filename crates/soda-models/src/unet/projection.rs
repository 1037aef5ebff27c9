//! The projections around a transformer's layers: matrices in SD 2 and SDXL, 1x1 convolutions in
//! SD 1. On tokens the two are the same product.
//!
//! burn's derive gives an enum's variant a level of its own in a parameter's path, but the
//! checkpoint's key is `proj_in.weight` for both. So [`Module`] is implemented by hand, and every
//! method hands on to the layer.

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use soda_kernels::linear_plus;

use crate::unet::attention::project_plus;

/// A pointwise projection, stored in one of two forms.
#[derive(Debug, Clone)]
pub enum Projection {
    /// A matrix.
    Linear(Linear),
    /// A convolution of kernel 1.
    Conv(Conv2d),
}

impl Projection {
    /// An untrained projection of `channels` to as many.
    pub fn init(channels: usize, linear: bool, device: &Device) -> Self {
        if linear {
            Self::Linear(LinearConfig::new(channels, channels).init(device))
        } else {
            Self::Conv(Conv2dConfig::new([channels; 2], [1, 1]).init(device))
        }
    }

    /// Tokens `[b, n, c]` to the same, with `rest` added to them.
    pub fn forward(&self, tokens: Tensor<3>, rest: Option<Tensor<3>>) -> Tensor<3> {
        match self {
            Self::Linear(layer) => project_plus(layer, tokens, rest),
            // A matrix product, without im2col.
            Self::Conv(layer) => {
                let weight = layer.weight.val();
                let [channels_out, channels_in, _, _] = weight.dims();
                let weight = || weight.reshape([channels_out, channels_in]).transpose();
                let bias = layer.bias.as_ref().map(|bias| bias.val());
                linear_plus(tokens, weight, bias, rest)
            }
        }
    }
}

/// An expression of the layer, whichever it is.
macro_rules! of_layer {
    ($projection:expr, $layer:ident => $value:expr) => {
        match $projection {
            Projection::Linear($layer) => $value,
            Projection::Conv($layer) => $value,
        }
    };
}

/// The projection whose layer is a function of the layer.
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
