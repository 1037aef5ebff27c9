//! The matrix exponential by scaling and squaring of its Taylor series.

use burn::tensor::{DType, Tensor};
use soda_kernels::matmul;

use super::algebra::{identity_like, norm_bound};

/// `exp(A)` for each matrix of `[b, n, n]` (Higham, Functions of Matrices, 10.3).
///
/// Reads the largest norm back from the device, once.
pub(crate) fn exponential(a: Tensor<3>) -> Tensor<3> {
    let norm = norm_bound(&a);
    // |A| <= 1/2 leaves a remainder below 1e-9 after 8 terms, below 1e-17 after 13.
    let halvings = (2.0 * norm).log2().ceil().clamp(0.0, 60.0) as i32;
    let order = if a.dtype() == DType::F64 { 13 } else { 8 };
    let a = a.mul_scalar(2f64.powi(-halvings));
    let identity = identity_like(&a);
    // Horner's scheme: I + A (I + A/2 (I + A/3 (…))).
    let mut sum = identity.clone() + a.clone().div_scalar(f64::from(order));
    for term in (1..order).rev() {
        sum = identity.clone() + matmul(a.clone(), sum).div_scalar(f64::from(term));
    }
    for _ in 0..halvings {
        sum = matmul(sum.clone(), sum);
    }
    sum
}
