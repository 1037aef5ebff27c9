//! Products with activations in E4M3 (`ActivationFormat::Fp8`), in burn's operations.
//!
//! ```text
//! W = diag(s) C      y = Q(x) W'      dx = Q(dy diag(s)) C
//! ```
//!
//! `Q` rounds each row to E4M3 times a scale, which is the largest magnitude of the row over 448. The
//! gradient passes through the rounding of `x` as if there were none. It is rounded with the scales of the
//! weight, so that the factors of the second product are codes too.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, FloatDType, Shape, TensorData};

use super::steps::ForwardSteps;
use super::{at_least_f32, cast, transposed};
use crate::quantize::QuantLayout;

/// The largest number of E4M3.
const LARGEST: f32 = 448.0;
/// The exponent of the smallest normal number of E4M3.
const LEAST_EXPONENT: f32 = -6.0;
/// The bits of a mantissa behind its point.
const MANTISSA_BITS: f32 = 3.0;

/// The product `Q(x) W'`.
pub(crate) fn product<B: ForwardSteps>(
    x: FloatTensor<B>,
    words: IntTensor<B>,
    scales: FloatTensor<B>,
    layout: QuantLayout,
) -> FloatTensor<B> {
    let w = B::dequantized(words, scales, layout, x.dtype().into());
    B::product(rounded::<B>(x), transposed::<B>(w))
}

/// The gradient of [`product`] by `x`.
pub(crate) fn gradient<B: ForwardSteps>(
    dy: FloatTensor<B>,
    words: IntTensor<B>,
    scales: FloatTensor<B>,
    layout: QuantLayout,
) -> FloatTensor<B> {
    let (dtype, rows) = (dy.dtype(), layout.shape()[0]);
    let ones = B::float_ones(Shape::new([rows]), &scales.device(), FloatDType::F32);
    // A gradient times the scales of a weight is below the range of f16.
    let computed = if dtype == DType::F16 { DType::F32 } else { dtype };
    let codes = B::dequantized(words, ones, layout, computed.into());
    let dy = at_least_f32::<B>(dy);
    let scales = B::float_reshape(cast::<B>(scales, dy.dtype()), Shape::new([1, rows]));
    let dy = rounded::<B>(B::float_mul(dy, scales));
    cast::<B>(B::product(cast::<B>(dy, computed), codes), dtype)
}

/// Rounds each row of `x` `[rows, columns]` to E4M3 times a scale. The result has the dtype of `x`.
fn rounded<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = x.dtype();
    let x = at_least_f32::<B>(x);
    let scale = B::float_div_scalar(B::float_max_abs_dim(x.clone(), 1), LARGEST.into());
    // A row of zeros has no scale.
    let scale = B::float_clamp_min(scale, f32::MIN_POSITIVE.into());
    let codes = nearest::<B>(B::float_mul(x, B::float_recip(scale.clone())));
    cast::<B>(B::float_mul(codes, scale), dtype)
}

/// The numbers of E4M3 that are nearest to `x`, ties to even mantissas.
fn nearest<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    // The exponent of a zero is that of the smallest numbers.
    let magnitude = B::float_clamp_min(B::float_abs(x.clone()), f32::MIN_POSITIVE.into());
    let logarithm = B::float_mul_scalar(B::float_log(magnitude), std::f32::consts::LOG2_E.into());
    let exponent = B::float_clamp_min(B::float_floor(logarithm), LEAST_EXPONENT.into());
    let exponent = B::float_sub_scalar(exponent, MANTISSA_BITS.into());
    let two = B::float_from_data(TensorData::from([[2.0f32]]), &x.device());
    let two = B::float_expand(cast::<B>(two, x.dtype()), x.shape());
    let step = B::float_powf(two, exponent);
    B::float_mul(B::float_round(B::float_div(x, step.clone())), step)
}
