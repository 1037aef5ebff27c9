//! Multi-head attention of pixels over pixels (self) or over the text's tokens (cross).
//!
//! ```text
//! softmax(q k' / sqrt(d)) v
//! ```
//!
//! Mirrors diffusers' `Attention`, and is the attention of the autoencoder and of CLIP too. The projections are plain [`Linear`]s: they are what adapters
//! change, from outside, through burn's reparameterization of `weight`.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Device, FloatDType, Tensor};

/// Stands for minus infinity in the scores of masked pairs: its exponential is 0 in every float
/// type, and unlike infinity it can be written in every shader language.
const MASKED: f32 = -1e4;

/// The sizes of an attention layer.
#[derive(Debug, Clone)]
pub struct AttentionConfig {
    /// Width of the queries and of the output.
    pub width: usize,
    /// Width of what is attended to.
    pub context: usize,
    /// Heads; each is `width / heads` wide.
    pub heads: usize,
    /// Whether the scores are computed in f32.
    pub upcast: bool,
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
            upcast: self.upcast,
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
    /// Whether the scores are computed in f32, whatever the weights are.
    pub upcast: bool,
}

impl Attention {
    /// `x`: `[b, n, width]`; `context`: `[b, m, context]`; returns `[b, n, width]`.
    pub fn forward(&self, x: Tensor<3>, context: Tensor<3>) -> Tensor<3> {
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
        project(&self.to_out.0, out)
    }
}

/// Attention of `q` `[b, n, c]` over `k`, `v` `[b, m, c]` in `heads` slices of `c`: `[b, n, c]`.
///
/// `mask`: `[1, 1, n, m]`, true where a row must not see a column.
pub(crate) fn multi_head(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    heads: usize,
    mask: Option<&Tensor<4, Bool>>,
) -> Tensor<3> {
    let [batch, queries, width] = q.dims();
    let split = |x: Tensor<3>| {
        let tokens = x.dims()[1];
        x.reshape([batch, tokens, heads, width / heads]).swap_dims(1, 2)
    };
    // Scaling q instead of the scores touches d numbers a query instead of m.
    let scale = ((width / heads) as f64).powf(-0.5);
    let (q, k, v) = (split(q.mul_scalar(scale)), split(k), split(v));
    let out = attend(q, k.transpose(), v, mask, SCORES_AT_ONCE);
    out.swap_dims(1, 2).reshape([batch, queries, width])
}

/// Rows of scores that are computed at once hold no more numbers than this. All of them together
/// are gigabytes for a picture of 64 x 64 latents.
const SCORES_AT_ONCE: usize = 1 << 24;

/// `softmax(q k') v` of every head: `q` `[b, heads, n, d]`, `k'` `[b, heads, d, m]`, `v`
/// `[b, heads, m, d]`, `at_once` scores at a time. On the tape, which keeps all of them anyway, it
/// is one product.
fn attend(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: Option<&Tensor<4, Bool>>,
    at_once: usize,
) -> Tensor<4> {
    let [batch, heads, queries, _] = q.dims();
    let row = batch * heads * k.dims()[3];
    let rows = (at_once / row.max(1)).max(1);
    let part = |first: usize, count: usize| {
        let scores = q.clone().narrow(2, first, count).matmul(k.clone());
        let scores = match mask {
            None => scores,
            Some(mask) => {
                let mask = mask.clone().narrow(2, first, count).expand(scores.dims());
                scores.mask_fill(mask, MASKED)
            }
        };
        softmax_rows(scores).matmul(v.clone())
    };
    if rows >= queries || q.device().is_autodiff() {
        return part(0, queries);
    }
    let parts = (0..queries).step_by(rows).map(|first| part(first, rows.min(queries - first)));
    Tensor::cat(parts.collect(), 2)
}

/// A linear layer on tokens `[b, n, c]`, all of them rows of one matrix: one large product is
/// faster than one for each sample, forwards and backwards.
pub(crate) fn project(layer: &Linear, tokens: Tensor<3>) -> Tensor<3> {
    let [batch, count, width] = tokens.dims();
    let out = layer.forward(tokens.reshape([batch * count, width]));
    let width = out.dims()[1];
    out.reshape([batch, count, width])
}

/// softmax over the last axis of `[b, heads, n, m]`, with a gradient that needs no exponential.
///
/// On the tape, burn takes softmax apart, and the derivative of its `exp` computes every `exp`
/// again: a sixth of a training step on a CPU. With `p = softmax(s)` off the tape and `z = s - s`,
/// zero but with the gradient of `s`,
///
/// ```text
/// y = p + p (z - sum_j p_j z_j)   has the value p and the gradient dp = p (ds - sum_j p_j ds_j)
/// ```
fn softmax_rows(scores: Tensor<4>) -> Tensor<4> {
    if !scores.device().is_autodiff() {
        return softmax(scores, 3);
    }
    let p = Tensor::from_inner(softmax(scores.clone().inner(), 3));
    let z = scores.clone() - scores.detach();
    p.clone() + p.clone() * (z.clone() - (p * z).sum_dim(3))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::noise::gaussian;

    #[test]
    fn rows_in_parts_are_rows() {
        let device = Device::default();
        let heads = |stream, n, d| gaussian::<4>(7, stream, [2, 3, n, d], &device);
        let (q, k, v) = (heads(0, 8, 4), heads(1, 4, 5), heads(2, 5, 4));
        let whole = softmax(q.clone().matmul(k.clone()), 3).matmul(v.clone());
        // Three rows of thirty scores at once, of eight.
        let difference: f32 = (attend(q, k, v, None, 90) - whole).abs().max().into_scalar();
        assert!(difference < 1e-5, "{difference}");
    }

    #[test]
    fn softmax_has_burns_value_and_gradient() {
        let plain = Device::default();
        let tape = plain.clone().autodiff();
        let scores = gaussian::<4>(0, 0, [2, 3, 5, 7], &plain).mul_scalar(4.0);
        let loss_weights = gaussian::<4>(0, 1, [2, 3, 5, 7], &tape);
        let run = |softmax: &dyn Fn(Tensor<4>) -> Tensor<4>| {
            let scores = Tensor::<4>::from_inner(scores.clone()).require_grad();
            let y = softmax(scores.clone());
            let grads = (y.clone() * loss_weights.clone()).sum().backward();
            (y.inner(), scores.grad(&grads).unwrap())
        };
        let (ours, theirs) = (run(&softmax_rows), run(&|x| softmax(x, 3)));
        for (a, b) in [(ours.0, theirs.0), (ours.1, theirs.1)] {
            let difference: f32 = (a - b).abs().max().into_scalar();
            assert!(difference < 1e-6, "{difference}");
        }
    }
}
