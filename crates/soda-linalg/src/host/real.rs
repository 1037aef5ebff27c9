//! The two precisions of host arithmetic.

use burn::tensor::{DType, Element, Tensor};
use faer::traits::RealField;

/// `f32` or `f64`.
pub(crate) trait Real: RealField + Element + Copy + Send + Sync {
    fn to_f64(self) -> f64;
    fn from_f64(value: f64) -> Self;
}

impl Real for f32 {
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl Real for f64 {
    fn to_f64(self) -> f64 {
        self
    }

    fn from_f64(value: f64) -> Self {
        value
    }
}

/// A value in one of the two precisions, in a batch that may hold both.
pub(super) enum EitherPrecision<S, D> {
    F32(S),
    F64(D),
}

/// Whether the host decomposes `a` in f64.
pub(crate) fn is_f64<const D: usize>(a: &Tensor<D>) -> bool {
    a.dtype() == DType::F64
}
