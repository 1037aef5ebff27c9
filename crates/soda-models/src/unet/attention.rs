//! Multi-head attention of pixels over pixels (self) or over the text's tokens (cross).
//!
//! ```text
//! softmax(q k' / sqrt(d)) v
//! ```
//!
//! Mirrors diffusers' `Attention`. The projections are plain [`Linear`]s: they are what adapters
//! change, from outside, through burn's reparameterization of `weight`.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};

/// The sizes of an attention layer.
#[derive(Debug, Clone)]
pub struct AttentionConfig {
    /// Width of the queries and of the output.
    pub width: usize,
    /// Width of what is attended to.
    pub context: usize,
    /// Heads; each is `width / heads` wide.
    pub heads: usize,
}

impl AttentionConfig {
    /// An untrained layer.
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
        }
    }
}

/// Query, key, value and output projections.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, without bias.
    pub to_q: Linear,
    /// Keys, without bias.
    pub to_k: Linear,
    /// Values, without bias.
    pub to_v: Linear,
    /// Output projection; a pair because its key is `to_out.0`, the dropout being `to_out.1`.
    pub to_out: (Linear, Dropout),
    /// Number of heads.
    pub heads: usize,
}

impl Attention {
    /// `x`: `[b, n, width]`; `context`: `[b, m, context]`; returns `[b, n, width]`.
    pub fn forward(&self, x: Tensor<3>, context: Tensor<3>) -> Tensor<3> {
        let q = self.to_q.forward(x);
        let k = self.to_k.forward(context.clone());
        let v = self.to_v.forward(context);
        self.to_out.0.forward(multi_head(q, k, v, self.heads))
    }
}

/// Attention of `q` `[b, n, c]` over `k`, `v` `[b, m, c]` in `heads` slices of `c`: `[b, n, c]`.
pub(crate) fn multi_head(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize) -> Tensor<3> {
    let [batch, queries, width] = q.dims();
    let split = |x: Tensor<3>| {
        let tokens = x.dims()[1];
        x.reshape([batch, tokens, heads, width / heads]).swap_dims(1, 2)
    };
    // Scaling q instead of the scores touches d numbers a query instead of m.
    let scale = ((width / heads) as f64).powf(-0.5);
    let (q, k, v) = (split(q.mul_scalar(scale)), split(k), split(v));
    let scores = softmax(q.matmul(k.transpose()), 3);
    scores.matmul(v).swap_dims(1, 2).reshape([batch, queries, width])
}
