//! Layers that several networks share: linear projections, norms, gated MLPs and multi-head attention.

use burn::nn::{Linear, RmsNorm};
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Bool, DType, Tensor};
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

/// Multi-head attention within samples of different lengths. Returns `[b, n, c]`.
///
/// `q`, `k` and `v` are `[b, n, c]`. Only the first `lengths[i]` tokens of sample `i` see and are seen, and
/// those behind get zeros. Samples of one length that are neighbours are computed at once, so that no scores
/// are masked.
pub(crate) fn multi_head_within(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    heads: usize,
    lengths: &[usize],
) -> Tensor<3> {
    let tokens = q.dims()[1];
    if lengths.iter().all(|length| *length == tokens) {
        return multi_head(q, k, v, heads, None);
    }
    let (mut first, mut parts) = (0, Vec::new());
    for run in lengths.chunk_by(|a, b| a == b) {
        let (count, length) = (run.len(), run[0]);
        let part = |x: &Tensor<3>| x.clone().narrow(0, first, count).narrow(1, 0, length);
        parts.push(padded(multi_head(part(&q), part(&k), part(&v), heads, None), tokens));
        first += count;
    }
    Tensor::cat(parts, 0)
}

/// Appends zeros to `x` `[b, m, c]` up to `tokens` tokens: `[b, tokens, c]`.
pub(crate) fn padded(x: Tensor<3>, tokens: usize) -> Tensor<3> {
    let [batch, found, width] = x.dims();
    if found >= tokens {
        return x;
    }
    let zeros = Tensor::zeros([batch, tokens - found, width], (&x.device(), x.dtype()));
    Tensor::cat(vec![x, zeros], 1)
}

/// Tokens `[b, n, c]` with the channels of each head, `[b, n, heads, c / heads]`.
pub(crate) fn heads_of(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, tokens, width] = x.dims();
    x.reshape([batch, tokens, heads, width / heads])
}

/// `w x / sqrt(mean(x²) + eps)` over the last axis (RMSNorm, Zhang and Sennrich, arXiv 1910.07467).
///
/// Normalises in f32 and scales in the dtype of `x`, as transformers and diffusers do. burn's own forward
/// pass divides in the dtype of `x`.
pub(crate) fn rms_norm<const D: usize>(layer: &RmsNorm, x: Tensor<D>) -> Tensor<D> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let scale = x.clone().square().mean_dim(D - 1).add_scalar(layer.epsilon).sqrt().recip();
    (x * scale).cast(dtype) * layer.gamma.val().unsqueeze()
}

/// The MLP `out(silu(gate(x)) values(x))` with an optional residual, all `[b, n, c]` (Shazeer, arXiv
/// 2002.05202).
pub(crate) fn gated_mlp(
    [gate, values, out]: [&Linear; 3],
    x: Tensor<3>,
    residual: Option<Tensor<3>>,
) -> Tensor<3> {
    let opened = silu(project(gate, x.clone()));
    project_residual(out, opened * project(values, x), residual)
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
