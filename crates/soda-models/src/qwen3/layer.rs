//! A layer of the language model: attention and a gated MLP, each with a norm before it and a residual.
//!
//! ```text
//! x = x + attention(norm(x))
//! x = x + down(silu(gate(norm(x))) up(norm(x)))
//! ```
//!
//! The MLP is a SwiGLU (Shazeer, arXiv 2002.05202).

use burn::module::Module;
use burn::nn::{Linear, LinearConfig, RmsNorm};
use burn::tensor::{Bool, Device, Tensor};

use super::attention::Attention;
use super::config::Qwen3Config;
use super::norm::norm;
use super::rotary::Rotary;
use crate::layers::{gated_mlp, rms_norm};

/// Attention and a gated MLP.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    /// Self-attention.
    pub self_attn: Attention,
    /// The MLP.
    pub mlp: Mlp,
    /// Norm before the attention.
    pub input_layernorm: RmsNorm,
    /// Norm before the MLP.
    pub post_attention_layernorm: RmsNorm,
}

impl DecoderLayer {
    pub(super) fn new(config: &Qwen3Config, device: &Device) -> Self {
        Self {
            self_attn: Attention::new(config, device),
            mlp: Mlp::new(config, device),
            input_layernorm: norm(config.hidden_size, config, device),
            post_attention_layernorm: norm(config.hidden_size, config, device),
        }
    }

    /// Computes the next hidden states of `x` `[b, n, width]`.
    ///
    /// `mask` is `[b, 1, n, n]` and true where a query must not see a key.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        mask: &Tensor<4, Bool>,
    ) -> Tensor<3> {
        let seen = rms_norm(&self.input_layernorm, x.clone());
        let x = self.self_attn.forward(seen, x, rotary, mask);
        self.mlp.forward(rms_norm(&self.post_attention_layernorm, x.clone()), x)
    }
}

/// A gated MLP without biases.
#[derive(Module, Debug)]
pub struct Mlp {
    /// Projection to the gate.
    pub gate_proj: Linear,
    /// Projection to what is gated.
    pub up_proj: Linear,
    /// Projection back to the width of the hidden states.
    pub down_proj: Linear,
}

impl Mlp {
    fn new(config: &Qwen3Config, device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            gate_proj: linear(width, inner),
            up_proj: linear(width, inner),
            down_proj: linear(inner, width),
        }
    }

    /// Applies the MLP to `x` `[b, n, width]` and adds `residual` of the same shape.
    fn forward(&self, x: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        gated_mlp([&self.gate_proj, &self.up_proj, &self.down_proj], x, Some(residual))
    }
}
