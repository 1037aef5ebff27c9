//! The last layer: a norm that the timestep scales, and a projection to latents.
//!
//! Mirrors diffusers' `FinalLayer` of Z-Image.
#![allow(non_snake_case, reason = "a field has the name of the checkpoint's key")]

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor};
use soda_kernels::modulated_layer_norm;

use super::config::ZImageConfig;
use crate::layers::project;

/// Epsilon of the norm, a constant in diffusers.
const EPS: f64 = 1e-6;

/// Norm and projection.
#[derive(Module, Debug)]
pub struct FinalLayer {
    /// Linear layer from tokens to the latents of a patch.
    pub linear: Linear,
    /// Dropout, and the linear layer from the embedded timestep to the norm's scale. The pair gives the layer
    /// its key `adaLN_modulation.1`.
    pub adaLN_modulation: (Dropout, Linear),
}

impl FinalLayer {
    /// Makes a layer with random weights.
    pub fn init(config: &ZImageConfig, device: &Device) -> Self {
        Self {
            linear: LinearConfig::new(config.dim, config.patch_channels()).init(device),
            adaLN_modulation: (
                DropoutConfig::new(0.0).init(),
                LinearConfig::new(config.time_width(), config.dim).init(device),
            ),
        }
    }

    /// Maps tokens `[b, n, c]` to patches `[b, n, p]` for the embedded timestep `[b, c']`.
    pub(super) fn forward(&self, x: Tensor<3>, time: &Tensor<2>) -> Tensor<3> {
        let scale: Tensor<3> =
            project(&self.adaLN_modulation.1, silu(time.clone())).unsqueeze_dim(1);
        let shift = scale.zeros_like();
        project(&self.linear, modulated_layer_norm(x, scale, shift, EPS))
    }
}
