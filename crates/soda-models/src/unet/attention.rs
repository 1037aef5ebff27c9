//! Multi-head attention of pixels over pixels (self-attention) or over the tokens of the text
//! (cross-attention).
//!
//! ```text
//! softmax(q k' / sqrt(d)) v
//! ```
//!
//! The projections are plain [`Linear`]s. Adapters change them from outside, through burn's
//! reparameterization of `weight`. Mirrors diffusers' `Attention`.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
use burn::tensor::{DType, Device, FloatDType, Tensor};

use crate::layers::{multi_head, project, project_residual};

/// The sizes of an attention layer.
#[derive(Debug, Clone)]
pub struct AttentionConfig {
    /// Width of the queries and of the output.
    pub width: usize,
    /// Width of the keys' and values' input.
    pub context: usize,
    /// Number of heads, each `width / heads` wide.
    pub heads: usize,
    /// Whether the scores are computed in f32.
    pub upcast: bool,
}

impl AttentionConfig {
    /// Makes a layer with random weights.
    pub fn init(&self, device: &Device) -> Attention {
        let linear = |from| LinearConfig::new(from, self.width).with_bias(false).init(device);
        Attention {
            to_q: linear(self.width),
            to_k: linear(self.context),
            to_v: linear(self.context),
            to_out: (
                LinearConfig::new(self.width, self.width).init(device),
                DropoutConfig::new(0.0).init(),
            ),
            heads: self.heads,
            upcast: self.upcast,
        }
    }
}

/// Multi-head attention with query, key, value and output projections.
#[derive(Module, Debug)]
pub struct Attention {
    /// Query projection, without bias.
    pub to_q: Linear,
    /// Key projection, without bias.
    pub to_k: Linear,
    /// Value projection, without bias.
    pub to_v: Linear,
    /// Output projection and dropout. The pair gives the projection its key `to_out.0`.
    pub to_out: (Linear, Dropout),
    /// Number of heads.
    pub heads: usize,
    /// Whether the scores are computed in f32, whatever the dtype of the weights is.
    pub upcast: bool,
}

impl Attention {
    /// Attends from `x` `[b, n, width]` over `context` `[b, m, context]` and adds `residual` `[b, n, width]`.
    /// Returns `[b, n, width]`.
    pub fn forward(&self, x: Tensor<3>, context: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        let q = project(&self.to_q, x);
        let k = project(&self.to_k, context.clone());
        let v = project(&self.to_v, context);
        let dtype = q.dtype();
        let out = if self.upcast && dtype != DType::F32 {
            let [q, k, v] = [q, k, v].map(|x| x.cast(FloatDType::F32));
            multi_head(q, k, v, self.heads, None).cast(dtype)
        } else {
            multi_head(q, k, v, self.heads, None)
        };
        project_residual(&self.to_out.0, out, Some(residual))
    }
}
