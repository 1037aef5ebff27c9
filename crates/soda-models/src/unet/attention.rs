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
use soda_kernels::{attention, linear_plus, matmul};

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
    /// `x`: `[b, n, width]`; `context`: `[b, m, context]`; returns `[b, n, width]`, with `rest` added to it.
    pub fn forward(&self, x: Tensor<3>, context: Tensor<3>, rest: Tensor<3>) -> Tensor<3> {
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
        project_plus(&self.to_out.0, out, Some(rest))
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
    let (q, k, v) = (split(q), split(k), split(v));
    let out = match mask {
        None => attention(q, k, v),
        Some(mask) => {
            let scale = ((width / heads) as f64).powf(-0.5);
            let scores = matmul(q.mul_scalar(scale), k.transpose());
            let shape = scores.dims();
            let scores = scores.mask_fill(mask.clone().expand(shape), MASKED);
            matmul(softmax(scores, 3), v)
        }
    };
    out.swap_dims(1, 2).reshape([batch, queries, width])
}

/// A linear layer on tokens `[.., c]`.
pub(crate) fn project<const D: usize>(layer: &Linear, tokens: Tensor<D>) -> Tensor<D> {
    project_plus(layer, tokens, None)
}

/// [`project`], and what its value is added to.
pub(crate) fn project_plus<const D: usize>(
    layer: &Linear,
    tokens: Tensor<D>,
    rest: Option<Tensor<D>>,
) -> Tensor<D> {
    let bias = layer.bias.as_ref().map(|bias| bias.val());
    linear_plus(tokens, || layer.weight.val(), bias, rest)
}
