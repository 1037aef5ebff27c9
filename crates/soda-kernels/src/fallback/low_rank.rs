//! A linear layer with a low-rank update, and the products and casts that it is made of.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::FloatDType;

use super::{at_least_f32, cast};
use crate::backend::Kernels;

/// The value `y = x w + (x a) b` and the intermediates of its gradient.
pub(crate) struct LowRank<B: Kernels> {
    pub(crate) y: FloatTensor<B>,
    /// `a` and `b` in the dtype of `x`.
    pub(crate) factors: [FloatTensor<B>; 2],
    /// `h = x a`.
    pub(crate) h: FloatTensor<B>,
}

/// [`Kernels::linear_low_rank`] with its intermediates.
pub(crate) fn forward<B: Kernels>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
) -> LowRank<B> {
    let (a, b) = B::cast_pair(a, b, x.dtype().into());
    let h = B::matmul(x.clone(), a.clone());
    let y = B::addmm(h.clone(), b.clone(), B::matmul(x, w));
    LowRank { y, factors: [a, b], h }
}

/// [`Kernels::cast_pair`].
pub(crate) fn cast_pair<B: Kernels>(
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    dtype: FloatDType,
) -> (FloatTensor<B>, FloatTensor<B>) {
    (cast::<B>(a, dtype.into()), cast::<B>(b, dtype.into()))
}

/// [`Kernels::matmul_to_f32`]: the product is rounded to its own dtype before the cast.
pub(crate) fn matmul_to_f32<B: Kernels>(
    lhs: FloatTensor<B>,
    rhs: FloatTensor<B>,
) -> FloatTensor<B> {
    at_least_f32::<B>(B::matmul(lhs, rhs))
}
