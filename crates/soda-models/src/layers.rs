//! Layers that several networks share: linear projections, gates and multi-head attention.

use burn::nn::Linear;
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Bool, Tensor};
use soda_kernels::{attention, linear_residual, matmul};

/// The score of a masked pair, in place of minus infinity. Its exponential is 0 in every float dtype, and
/// every shader language can write it.
const MASKED: f32 = -1e4;

/// Multi-head attention of `q` `[b, n, c]` over `k` and `v`, both `[b, m, c]`. Returns `[b, n, c]`.
///
/// Each head attends in its slice of `c / heads` channels. `mask` is `[1, 1, n, m]` and true where a query
/// must not see a key.
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
    let out = attend(split(q), split(k), split(v), mask);
    out.swap_dims(1, 2).reshape([batch, queries, width])
}

/// The gate `silu(a) b` of the halves `a` and `b` of the last axis (Shazeer, arXiv 2002.05202).
pub(crate) fn swiglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let half = x.dims()[D - 1] / 2;
    let (a, b) = (x.clone().narrow(D - 1, 0, half), x.narrow(D - 1, half, half));
    silu(a) * b
}

/// Attention of heads `q` `[b, h, n, d]` over `k` and `v`, both `[b, h, m, d]`. Returns `[b, h, n, d]`.
///
/// `mask` is `[b or 1, 1, n, m]` and true where a query must not see a key.
pub(crate) fn attend(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: Option<&Tensor<4, Bool>>,
) -> Tensor<4> {
    let Some(mask) = mask else { return attention(q, k, v) };
    let scale = (q.dims()[3] as f64).powf(-0.5);
    let scores = matmul(q.mul_scalar(scale), k.transpose());
    let shape = scores.dims();
    let scores = scores.mask_fill(mask.clone().expand(shape), MASKED);
    matmul(softmax(scores, 3), v)
}

/// Applies a linear layer to tokens `[.., c]`.
pub(crate) fn project<const D: usize>(layer: &Linear, tokens: Tensor<D>) -> Tensor<D> {
    project_residual(layer, tokens, None)
}

/// Applies a linear layer to tokens `[.., c]` and adds an optional `residual`.
pub(crate) fn project_residual<const D: usize>(
    layer: &Linear,
    tokens: Tensor<D>,
    residual: Option<Tensor<D>>,
) -> Tensor<D> {
    let bias = layer.bias.as_ref().map(|bias| bias.val());
    linear_residual(tokens, || layer.weight.val(), bias, residual)
}
