//! The polar factor `X (XᵀX)^(-1/2)`: the nearest matrix with orthonormal columns.
//!
//! By Newton-Schulz, `X <- X (3 I - XᵀX) / 2` (Higham, Functions of Matrices, 8.3), so in matrix
//! products only and on a batch at once. With the singular values scaled into `(0, 1]` it converges
//! from any matrix of full rank; the error `e = 1 - σ²` of each becomes `e² (3 + e) / 4`, hence the
//! number of iterations follows from a lower bound on `σ²` alone. It is a number on the host: nothing
//! is read back from the device.

use burn::tensor::{DType, Tensor};

/// Newton-Schulz on `[b, n, m]`, `n >= m`, each matrix first scaled below spectral norm 1; at least one
/// iteration.
pub(crate) fn newton_schulz(x: Tensor<3>, iterations: usize) -> Tensor<3> {
    let [_, _, m] = x.dims();
    let identity = Tensor::<2>::eye(m, &x.device()).cast(x.dtype()).unsqueeze_dim::<3>(0);
    let gram = x.clone().transpose().matmul(x.clone());
    // The largest row sum bounds the largest eigenvalue; of an orthonormal X it is 1.
    let bound = gram.clone().abs().sum_dim(2).max_dim(1).clamp_min(f32::MIN_POSITIVE);
    // As a correction: near the end it is small, and so is its rounding.
    let correct = |x: Tensor<3>, gram: Tensor<3>| {
        x.clone() + x.matmul((identity.clone() - gram).mul_scalar(0.5))
    };
    let mut x = correct(x / bound.clone().sqrt(), gram / bound);
    for _ in 1..iterations {
        x = correct(x.clone(), x.clone().transpose().matmul(x));
    }
    x
}

/// Iterations after which [`newton_schulz`] is converged to rounding, for an `[n, m]` matrix whose
/// singular values lie in `[1, sqrt(largest)]`: what a tangent step away from an orthonormal matrix
/// gives.
pub(crate) fn iterations(largest: f64, m: usize, dtype: DType) -> usize {
    let target = if dtype == DType::F64 { 1e-17 } else { 1e-9 };
    // `|X^T X|_inf - 1 <= sqrt(m) (largest - 1)`, and that is what the scaling divides by.
    let excess = (m as f64).sqrt() * (largest - 1.0);
    let mut error = excess / (1.0 + excess);
    let mut count = 1;
    // Not `error > target` alone: a bound of infinity or NaN must end as well.
    while error.is_finite()
        && error * error * (3.0 + error) / 4.0 > target
        && count < MAX_ITERATIONS
    {
        error = error * error * (3.0 + error) / 4.0;
        count += 1;
    }
    count
}

/// Enough for a spectrum of 1e-8 and below.
const MAX_ITERATIONS: usize = 60;
