//! The block in which image and text share their weights, with attention and MLP side by side.
//!
//! ```text
//! y = x + gate out(attention(n), swiglu(n))      n = norm(x) (1 + scale) + shift
//! ```
//!
//! Both layers have one input and one output projection ("Scaling Vision Transformers to 22 Billion
//! Parameters", arXiv 2302.05442). Mirrors diffusers' `Flux2SingleTransformerBlock` and
//! `Flux2ParallelSelfAttention`.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{DType, Device, Tensor};
use soda_kernels::parallel_attention;

use super::config::Flux2Config;
use super::modulation::LayerModulation;
use crate::layers::project;
use crate::rotary::RotaryEmbedding;

/// The largest f16.
const LARGEST_F16: f32 = 65_504.0;

/// Attention and MLP side by side.
#[derive(Module, Debug)]
pub struct SingleBlock {
    /// Both layers.
    pub attn: ParallelAttention,
    /// Epsilon of the layer norm.
    pub eps: f64,
}

impl SingleBlock {
    /// Makes a block with random weights.
    pub fn init(config: &Flux2Config, device: &Device) -> Self {
        Self { attn: ParallelAttention::init(config, device), eps: config.eps }
    }

    /// Computes the block for tokens `x` `[b, n, c]`. Returns the same shape.
    pub fn forward(
        &self,
        x: Tensor<3>,
        modulation: &LayerModulation,
        rotary: &RotaryEmbedding,
    ) -> Tensor<3> {
        let output = self.attn.forward(modulation.modulated(x.clone(), self.eps), rotary);
        clamp_f16(modulation.add_gated(x, output))
    }
}

/// Self-attention and an MLP with common projections.
#[derive(Module, Debug)]
pub struct ParallelAttention {
    /// Projection to query, key, value, and the MLP's gate and values.
    pub to_qkv_mlp_proj: Linear,
    /// Norm of the queries.
    pub norm_q: RmsNorm,
    /// Norm of the keys.
    pub norm_k: RmsNorm,
    /// Output projection of attention and MLP.
    pub to_out: Linear,
    /// Number of heads.
    pub heads: usize,
}

impl ParallelAttention {
    /// Makes a layer with random weights.
    pub fn init(config: &Flux2Config, device: &Device) -> Self {
        let (width, inner) = (config.width(), config.mlp_width());
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        let norm =
            || RmsNormConfig::new(config.attention_head_dim).with_epsilon(config.eps).init(device);
        Self {
            to_qkv_mlp_proj: linear(width, 3 * width + 2 * inner),
            norm_q: norm(),
            norm_k: norm(),
            to_out: linear(width + inner, width),
            heads: config.num_attention_heads,
        }
    }

    fn forward(&self, x: Tensor<3>, rotary: &RotaryEmbedding) -> Tensor<3> {
        let all = project(&self.to_qkv_mlp_proj, x);
        let norms = [&self.norm_q, &self.norm_k];
        project(&self.to_out, parallel_attention(all, norms, rotary, self.heads))
    }
}

/// Keeps f16 tokens finite, as diffusers does. Other dtypes have the range.
pub(super) fn clamp_f16(x: Tensor<3>) -> Tensor<3> {
    match x.dtype() {
        DType::F16 => x.clamp(-LARGEST_F16, LARGEST_F16),
        _ => x,
    }
}
