//! The seam between operations and backends.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata, backend_extension};
use burn::tensor::FloatDType;
use burn::tensor::ops::ConvOptions;

use crate::{attention, columns, conv, geglu, join, low_rank, norm, plus};

/// By q, k and v.
pub(crate) type AttentionGradient<B> =
    (Option<FloatTensor<B>>, Option<FloatTensor<B>>, Option<FloatTensor<B>>);

/// What a backend may do better than burn does; each method has burn's own operations as its default.
///
/// No method differentiates: gradients are the same for all backends and call these. Methods in pairs, that differ by one tensor,
/// are so because the extension's macro knows no optional argument.
#[backend_extension(Flex: cfg(feature = "cpu"), Cube: cfg(feature = "cube"), Autodiff)]
pub trait Kernels: Backend {
    /// As many of attention's weights are kept on the tape; more are computed again.
    const SCORES_KEPT: usize = 1 << 24;
    /// In half precision attention works with a multiple of this many keys, the added ones zeros.
    const HALF_KEYS: usize = 1;

    /// `lhs rhs` for `[.., m, k]` and `[.., k, n]` with the same leading sizes.
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(lhs, rhs)
    }

    /// `lhs rhs + to`.
    fn product_onto(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        to: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::float_add(Self::product(lhs, rhs), to)
    }

    /// [`product`](Self::product) with a result in float32, of factors that may be of half precision.
    fn wide_product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        low_rank::wide_product::<Self>(lhs, rhs)
    }

    /// Both in another type.
    fn both_cast(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        low_rank::both_cast::<Self>(a, b, dtype)
    }

    /// `x w + (x a) b` for `x` `[rows, in]`, `w` `[in, out]` of its type, `a` `[in, r]` and `b` `[r, out]`, which may be of a finer one.
    fn low_rank(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        low_rank::forward::<Self>(x, w, a, b)
    }

    /// The convolution of `x` `[b, c, h, w]` with `weight` `[o, c, kh, kw]`, one group, no dilation, the same
    /// padding on both sides.
    fn convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        Self::conv2d(x, weight, None, options)
    }

    /// The gradient of [`convolution`](Self::convolution) by its input of `height` and `width`, from the
    /// gradient `grad` `[b, o, h', w']` of its output.
    fn convolution_gradient(
        grad: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        height: usize,
        width: usize,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        conv::transposed::<Self>(grad, weight, [height, width], options)
    }

    /// softmax over the first `keys` of the last axis; the others, which [`HALF_KEYS`](Self::HALF_KEYS) may have added,
    /// become 0.
    fn softmax_rows(scores: FloatTensor<Self>, keys: usize) -> FloatTensor<Self> {
        attention::softmax::<Self>(scores, keys)
    }

    /// The gradient of [`softmax_rows`](Self::softmax_rows) from its value `p` and the gradient `dp` of that:
    /// `p ∘ (dp - rowsum(p ∘ dp))`.
    fn softmax_rows_gradient(p: FloatTensor<Self>, dp: FloatTensor<Self>) -> FloatTensor<Self> {
        let last = p.rank() - 1;
        let mean = Self::float_sum_dim(Self::float_mul(p.clone(), dp.clone()), last);
        Self::float_mul(p, Self::float_sub(dp, mean))
    }

    /// `softmax(scale q k') v` for `[b, heads, n, d]` and `[b, heads, m, d]`.
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        attention::forward::<Self>(q, k, v, scale)
    }

    /// [`attend`](Self::attend), and what its gradient is quicker with: the weights, or of each query what makes them
    /// from its scores.
    fn attend_keeping(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        attention::keeping::<Self>(q, k, v, scale)
    }

    /// The gradients of [`attend`](Self::attend) by q, k and v, as far as they are `wanted`, from that of its value.
    #[allow(
        clippy::type_complexity,
        reason = "the extension's macro reads the tuple, not a name for it"
    )]
    fn attend_gradient(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        scale: f64,
        wanted: [bool; 3],
    ) -> (Option<FloatTensor<Self>>, Option<FloatTensor<Self>>, Option<FloatTensor<Self>>) {
        attention::gradient::<Self>([q, k, v], grad, None, scale, wanted)
    }

    /// [`attend_gradient`](Self::attend_gradient) with the value and what [`attend_keeping`](Self::attend_keeping) kept.
    #[allow(clippy::type_complexity, clippy::too_many_arguments, reason = "as above")]
    fn attend_gradient_keeping(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        _value: FloatTensor<Self>,
        kept: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        scale: f64,
        wanted: [bool; 3],
    ) -> (Option<FloatTensor<Self>>, Option<FloatTensor<Self>>, Option<FloatTensor<Self>>) {
        attention::gradient::<Self>([q, k, v], grad, Some(kept), scale, wanted)
    }

    /// Group norm of `x` `[b, c, h, w]` with scale `gamma` and shift `beta` `[c]`, then silu if `act`; and what its gradient is
    /// quicker with, where there is any: means and deviations of the groups.
    fn normalize_groups(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        eps: f64,
        act: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        (norm::groups::<Self>(x, gamma, beta, groups, eps, act), None)
    }

    /// Its gradient by `x`.
    fn normalize_groups_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        eps: f64,
        act: bool,
    ) -> FloatTensor<Self> {
        norm::groups_gradient::<Self>(x, dy, gamma, beta, groups, eps, act)
    }

    /// The same with what [`normalize_groups`](Self::normalize_groups) kept.
    #[allow(clippy::too_many_arguments, reason = "as above")]
    fn normalize_groups_gradient_keeping(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        _kept: FloatTensor<Self>,
        groups: usize,
        eps: f64,
        act: bool,
    ) -> FloatTensor<Self> {
        Self::normalize_groups_gradient(x, dy, gamma, beta, groups, eps, act)
    }

    /// Layer norm over the last axis of `x`.
    fn normalize_rows(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        Self::layer_norm(x, gamma, Some(beta), eps)
    }

    /// Its gradient by `x`.
    fn normalize_rows_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        norm::rows_gradient::<Self>(x, dy, gamma, eps)
    }

    /// `a gelu(b)` for the halves `(a, b)` of the last axis.
    fn gate(x: FloatTensor<Self>) -> FloatTensor<Self> {
        geglu::forward::<Self>(x)
    }

    /// Its gradient.
    fn gate_gradient(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        geglu::gradient::<Self>(x, dy)
    }

    /// [`gate`](Self::gate) of `x` with `bias` added along its last axis.
    fn gate_biased(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::gate(geglu::biased::<Self>(x, bias))
    }

    /// Its gradient by `x`.
    fn gate_biased_gradient(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::gate_gradient(geglu::biased::<Self>(x, bias), dy)
    }

    /// `x + bias` for `x` `[.., c]` and `bias` `[k, c]`, of which each row is for a `k`-th of the rows of `x`.
    fn add_bias(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        plus::forward::<Self>(x, bias)
    }

    /// The same and `rest`, which has the shape of `x`.
    fn add_bias_to(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        rest: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::float_add(plus::forward::<Self>(x, bias), rest)
    }

    /// The channels of two maps `[b, c, h, w]` one after the other.
    fn join(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_cat(vec![a, b], 1)
    }

    /// Its gradients, of which the first is by a map of so many `channels`.
    fn join_gradient(
        dy: FloatTensor<Self>,
        channels: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        join::gradient::<Self>(dy, channels)
    }

    /// `l diag(max(gain, least))` for `l` `[rows, k]` and vectors `[k]`, which may be of a finer type.
    fn columns(
        l: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        least: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        columns::forward::<Self>(l, gain, least)
    }

    /// Its gradient by `gain`.
    fn columns_gradient(
        l: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        least: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        columns::gradient::<Self>(l, dy, gain, least)
    }
}

// With fusion a tensor is a promise of one, without a buffer that a library could be given.
#[cfg(all(feature = "cube", not(feature = "cuda")))]
impl Kernels for burn::backend::Cube {}
