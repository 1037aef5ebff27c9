//! The polar factor of a batch of matrices by the Newton-Schulz iteration `X <- X (3 I - XᵀX) / 2`.
//!
//! With singular values scaled into `(0, 1]` the iteration converges from any matrix of full rank
//! (Higham, Functions of Matrices, 8.3). The error `e = 1 - σ²` of each singular value becomes
//! `e² (3 + e) / 4`, so that the number of iterations follows from a lower bound on `σ²`.

use burn::tensor::{DType, Tensor};
use soda_kernels::matmul;

use super::algebra::{gram, identity_like, norm_bound};

/// The polar factor of `[b, n, m]`, `n >= m`, in `max(iterations, 1)` iterations.
///
/// Each matrix is first scaled below spectral norm 1.
pub(crate) fn newton_schulz(x: Tensor<3>, iterations: usize) -> Tensor<3> {
    let gram = gram(&x);
    newton_schulz_from(x, gram, iterations)
}

/// The polar retraction of `X + U`, `[b, n, m]`, for a tangent `U` at an orthonormal `X`.
///
/// Reads one number back from the device, a bound on `|XᵀX|`, which gives the number of iterations.
pub(crate) fn polar_retraction(x: Tensor<3>) -> Tensor<3> {
    let gram = gram(&x);
    let count = iterations_for_excess(norm_bound(&gram) - 1.0, x.dtype());
    newton_schulz_from(x, gram, count)
}

fn newton_schulz_from(x: Tensor<3>, first_gram: Tensor<3>, iterations: usize) -> Tensor<3> {
    let identity = identity_like(&x);
    // The largest row sum bounds the largest eigenvalue; for an orthonormal X it is 1.
    let bound = first_gram.clone().abs().sum_dim(2).max_dim(1).clamp_min(f32::MIN_POSITIVE);
    // The step is a sum with a correction, whose rounding errors shrink with it.
    let step = |x: Tensor<3>, gram: Tensor<3>| {
        x.clone() + matmul(x, (identity.clone() - gram).mul_scalar(0.5))
    };
    let mut x = step(x / bound.clone().sqrt(), first_gram / bound);
    for _ in 1..iterations {
        x = step(x.clone(), gram(&x));
    }
    x
}

/// The iterations after which [`newton_schulz`] has converged to rounding, for an `[n, m]` matrix whose
/// singular values lie in `[1, sqrt(largest)]`.
///
/// A step along a tangent from an orthonormal matrix gives such a matrix.
pub(crate) fn iterations(largest: f64, m: usize, dtype: DType) -> usize {
    // The matrix is scaled by |XᵀX|_inf, and |XᵀX|_inf - 1 <= sqrt(m) (largest - 1).
    iterations_for_excess((m as f64).sqrt() * (largest - 1.0), dtype)
}

/// The iterations after which [`newton_schulz`] has converged, from a bound on `|XᵀX|_inf - 1`.
fn iterations_for_excess(excess: f64, dtype: DType) -> usize {
    let target = if dtype == DType::F64 { 1e-17 } else { 1e-9 };
    let excess = excess.max(0.0);
    let next = |error: f64| error * error * (3.0 + error) / 4.0;
    let (mut error, mut count) = (excess / (1.0 + excess), 1);
    // A NaN compares false and ends the loop; an infinite excess gives NaN.
    while next(error) > target && count < MAX_ITERATIONS {
        error = next(error);
        count += 1;
    }
    count
}

/// Enough for a least singular value of 1e-8 of the largest.
const MAX_ITERATIONS: usize = 60;
