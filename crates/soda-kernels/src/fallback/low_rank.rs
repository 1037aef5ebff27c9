//! A linear layer with a low-rank update, and the products and casts that it is made of.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::FloatDType;

use super::steps::ForwardSteps;
use super::{at_least_f32, cast};

/// The value `y`, of which `(x a) b` is a part, and the intermediates of its gradient.
pub(crate) struct LowRank<B: Backend> {
    pub(crate) y: FloatTensor<B>,
    /// `a` and `b` in the dtype of `x`.
    pub(crate) factors: [FloatTensor<B>; 2],
    /// `h = x a`.
    pub(crate) h: FloatTensor<B>,
}

/// `Kernels::linear_low_rank` with its intermediates.
pub(crate) fn forward<B: ForwardSteps>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
) -> LowRank<B> {
    update::<B>(B::product(x.clone(), w), x, a, b)
}

/// `Kernels::add_low_rank` with its intermediates.
pub(crate) fn update<B: ForwardSteps>(
    y: FloatTensor<B>,
    x: FloatTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
) -> LowRank<B> {
    let (a, b) = B::cast_both(a, b, x.dtype().into());
    let h = B::product(x, a.clone());
    let y = B::product_sum(h.clone(), b.clone(), y);
    LowRank { y, factors: [a, b], h }
}

/// `Kernels::cast_pair`.
pub(crate) fn cast_pair<B: Backend>(
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    dtype: FloatDType,
) -> (FloatTensor<B>, FloatTensor<B>) {
    (cast::<B>(a, dtype.into()), cast::<B>(b, dtype.into()))
}

/// `Kernels::matmul_to_f32`: the product is rounded to its own dtype before the cast.
pub(crate) fn matmul_to_f32<B: ForwardSteps>(
    lhs: FloatTensor<B>,
    rhs: FloatTensor<B>,
) -> FloatTensor<B> {
    at_least_f32::<B>(B::product(lhs, rhs))
}
