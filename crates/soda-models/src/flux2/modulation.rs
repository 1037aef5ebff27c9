//! Modulation: shift, scale and gate of a layer as functions of the timestep.
//!
//! ```text
//! y = x + gate f(norm(x) (1 + scale) + shift)
//! ```
//!
//! "Scalable Diffusion Models with Transformers" (arXiv 2212.09748). All blocks of a kind share one
//! modulation. Mirrors diffusers' `Flux2Modulation` and `AdaLayerNormContinuous`.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use soda_kernels::modulated_layer_norm;

use crate::layers::project;

/// A linear layer from the timestep embedding to shift, scale and gate of one layer or of two.
#[derive(Module, Debug)]
pub struct Modulation {
    /// The linear layer.
    pub linear: Linear,
}

impl Modulation {
    /// Makes a modulation of `layers` layers with random weights.
    pub fn init(width: usize, layers: usize, device: &Device) -> Self {
        let linear = LinearConfig::new(width, 3 * layers * width).with_bias(false).init(device);
        Self { linear }
    }

    /// Computes shift, scale and gate of each layer from the timestep embedding `[b, c]`, after its silu:
    /// `[b, 1, 3 layers c]`.
    pub fn forward(&self, time: &Tensor<2>) -> Tensor<3> {
        project(&self.linear, time.clone()).unsqueeze_dim(1)
    }
}

/// Shift, scale and gate of one layer, each `[b, 1, c]`.
#[derive(Debug, Clone)]
pub struct LayerModulation {
    shift: Tensor<3>,
    scale: Tensor<3>,
    gate: Tensor<3>,
}

impl LayerModulation {
    /// Splits the result of a [`Modulation`] of `N` layers.
    pub fn split<const N: usize>(all: &Tensor<3>) -> [Self; N] {
        let width = all.dims()[2] / (3 * N);
        let part = |index: usize| all.clone().narrow(2, index * width, width);
        std::array::from_fn(|layer| Self {
            shift: part(3 * layer),
            scale: part(3 * layer + 1),
            gate: part(3 * layer + 2),
        })
    }

    /// The layer's input for tokens `x` `[b, n, c]`: normalized, scaled and shifted.
    pub(super) fn modulated(&self, x: Tensor<3>, eps: f64) -> Tensor<3> {
        modulated_layer_norm(x, self.scale.clone(), self.shift.clone(), eps)
    }

    /// Adds the layer's output `[b, n, c]` to the tokens `x` `[b, n, c]`.
    pub(super) fn add_gated(&self, x: Tensor<3>, output: Tensor<3>) -> Tensor<3> {
        x + self.gate.clone() * output
    }
}

/// The last norm, whose scale and shift depend on the timestep.
#[derive(Module, Debug)]
pub struct AdaLayerNorm {
    /// The linear layer from the timestep embedding to scale and shift, in this order.
    pub linear: Linear,
}

impl AdaLayerNorm {
    /// Makes a norm with random weights.
    pub fn init(width: usize, device: &Device) -> Self {
        Self { linear: LinearConfig::new(width, 2 * width).with_bias(false).init(device) }
    }

    /// Computes the norm of `x` `[b, n, c]` for the timestep embedding `[b, c]`, after its silu. Returns `[b,
    /// n, c]`.
    pub(super) fn forward(&self, x: Tensor<3>, time: &Tensor<2>, eps: f64) -> Tensor<3> {
        let width = time.dims()[1];
        let both: Tensor<3> = project(&self.linear, time.clone()).unsqueeze_dim(1);
        let (scale, shift) = (both.clone().narrow(2, 0, width), both.narrow(2, width, width));
        modulated_layer_norm(x, scale, shift, eps)
    }
}
