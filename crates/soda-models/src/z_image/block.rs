//! The block of all stages: attention and a gated MLP, each between two norms.
//!
//! ```text
//! x = x + tanh(g1) norm(attention(norm(x) (1 + s1)))
//! x = x + tanh(g2) norm(mlp(norm(x) (1 + s2)))
//! ```
//!
//! The scales `s` and gates `g` are linear in the embedded timestep. Blocks on the text alone have neither.
//! Mirrors diffusers' `ZImageTransformerBlock`.
#![allow(non_snake_case, reason = "a field has the name of the checkpoint's key")]

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Tensor};
use soda_kernels::rms_norm_rotary;

use super::config::ZImageConfig;
use crate::layers::{gated_mlp, heads_of, multi_head_within, project, rms_norm};
use crate::rotary::RotaryEmbedding;

/// Epsilon of the norms of queries and keys, a constant in diffusers.
const HEAD_NORM_EPS: f64 = 1e-5;

/// Attention and an MLP.
#[derive(Module, Debug)]
pub struct ZImageBlock {
    /// Self-attention.
    pub attention: SelfAttention,
    /// The MLP.
    pub feed_forward: FeedForward,
    /// Norm before the attention.
    pub attention_norm1: RmsNorm,
    /// Norm before the MLP.
    pub ffn_norm1: RmsNorm,
    /// Norm after the attention.
    pub attention_norm2: RmsNorm,
    /// Norm after the MLP.
    pub ffn_norm2: RmsNorm,
    /// The linear layer from the embedded timestep to scales and gates, and dropout. The pair gives the layer
    /// its key `adaLN_modulation.0`. `None` for blocks on the text alone.
    pub adaLN_modulation: Option<(Linear, Dropout)>,
}

/// Scale and gate of a layer, each `[b, 1, c]`.
struct Modulation {
    scale: Tensor<3>,
    gate: Tensor<3>,
}

impl ZImageBlock {
    /// Makes a block with random weights, with or without modulation by the timestep.
    pub fn init(config: &ZImageConfig, modulated: bool, device: &Device) -> Self {
        let width = config.dim;
        let norm = || RmsNormConfig::new(width).with_epsilon(config.norm_eps).init(device);
        let modulation = || {
            let linear = LinearConfig::new(config.time_width(), 4 * width).init(device);
            (linear, DropoutConfig::new(0.0).init())
        };
        Self {
            attention: SelfAttention::init(config, device),
            feed_forward: FeedForward::init(width, config.mlp_width(), device),
            attention_norm1: norm(),
            ffn_norm1: norm(),
            attention_norm2: norm(),
            ffn_norm2: norm(),
            adaLN_modulation: modulated.then(modulation),
        }
    }

    /// Computes the block for tokens `x` `[b, n, c]`. Returns the same shape.
    ///
    /// Only the first `lengths[i]` tokens of sample `i` see and are seen. `time` is the embedded timestep,
    /// `[b, c']`, which a block without modulation does not read.
    pub fn forward(
        &self,
        x: Tensor<3>,
        rotary: &RotaryEmbedding,
        lengths: &[usize],
        time: &Tensor<2>,
    ) -> Tensor<3> {
        let [of_attention, of_mlp] = self.modulations(time);
        let norms = [&self.attention_norm1, &self.attention_norm2];
        let x = between(norms, x, of_attention, |x| self.attention.forward(x, rotary, lengths));
        let norms = [&self.ffn_norm1, &self.ffn_norm2];
        between(norms, x, of_mlp, |x| self.feed_forward.forward(x))
    }

    /// Scale and gate of attention and MLP.
    fn modulations(&self, time: &Tensor<2>) -> [Option<Modulation>; 2] {
        let Some((linear, _)) = &self.adaLN_modulation else { return [None, None] };
        let all: Tensor<3> = project(linear, time.clone()).unsqueeze_dim(1);
        let width = all.dims()[2] / 4;
        let part = |index: usize| all.clone().narrow(2, index * width, width);
        [0, 2].map(|first| {
            let scale = part(first).add_scalar(1.0);
            Some(Modulation { scale, gate: part(first + 1).tanh() })
        })
    }
}

/// Adds the output of `layer` to `x`, with a norm before the layer and another one after it.
fn between(
    [before, after]: [&RmsNorm; 2],
    x: Tensor<3>,
    modulation: Option<Modulation>,
    layer: impl FnOnce(Tensor<3>) -> Tensor<3>,
) -> Tensor<3> {
    let input = rms_norm(before, x.clone());
    match modulation {
        None => x + rms_norm(after, layer(input)),
        Some(Modulation { scale, gate }) => x + gate * rms_norm(after, layer(input * scale)),
    }
}

/// Self-attention with norms of queries and keys.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Query projection.
    pub to_q: Linear,
    /// Key projection.
    pub to_k: Linear,
    /// Value projection.
    pub to_v: Linear,
    /// Norm of the queries of a head.
    pub norm_q: RmsNorm,
    /// Norm of the keys of a head.
    pub norm_k: RmsNorm,
    /// Output projection and dropout. The pair gives the projection its key `to_out.0`.
    pub to_out: (Linear, Dropout),
    /// Number of heads.
    pub heads: usize,
}

impl SelfAttention {
    /// Makes a layer with random weights.
    pub fn init(config: &ZImageConfig, device: &Device) -> Self {
        let linear = || LinearConfig::new(config.dim, config.dim).with_bias(false).init(device);
        let norm =
            || RmsNormConfig::new(config.head_dim()).with_epsilon(HEAD_NORM_EPS).init(device);
        Self {
            to_q: linear(),
            to_k: linear(),
            to_v: linear(),
            norm_q: norm(),
            norm_k: norm(),
            to_out: (linear(), DropoutConfig::new(0.0).init()),
            heads: config.n_heads,
        }
    }

    fn forward(&self, x: Tensor<3>, rotary: &RotaryEmbedding, lengths: &[usize]) -> Tensor<3> {
        let shape = x.dims();
        let rotated = |norm: &RmsNorm, layer: &Linear| {
            let heads = heads_of(project(layer, x.clone()), self.heads);
            rms_norm_rotary(norm, heads, rotary).reshape(shape)
        };
        let (q, k) = (rotated(&self.norm_q, &self.to_q), rotated(&self.norm_k, &self.to_k));
        let v = project(&self.to_v, x.clone());
        project(&self.to_out.0, multi_head_within(q, k, v, self.heads, lengths))
    }
}

/// The MLP `w2(silu(w1 x) w3 x)`.
#[derive(Module, Debug)]
pub struct FeedForward {
    /// Linear layer to the gate.
    pub w1: Linear,
    /// Linear layer back to the width of the tokens.
    pub w2: Linear,
    /// Linear layer to what is gated.
    pub w3: Linear,
}

impl FeedForward {
    /// Makes an MLP with random weights.
    pub fn init(width: usize, inner: usize, device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        Self { w1: linear(width, inner), w2: linear(inner, width), w3: linear(width, inner) }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        gated_mlp([&self.w1, &self.w3, &self.w2], x, None)
    }
}
