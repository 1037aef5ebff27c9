//! The polar decomposition `A = Q P`, whose factor `Q = A (AᵀA)^(-1/2)` is the nearest matrix with
//! orthonormal columns.
//!
//! Two ways to it. On the host from the SVD `A = U diag(s) Vᵀ`: `Q = U Vᵀ`, accurate for any rank.
//! On the device by Newton-Schulz, `X <- X (3 I - XᵀX) / 2` (Higham, Functions of Matrices, 8.3), in
//! matrix products only and on a batch at once. With the singular values scaled into `(0, 1]` it
//! converges from any matrix of full rank; the error `e = 1 - σ²` of each becomes `e² (3 + e) / 4`,
//! hence the number of iterations follows from a lower bound on `σ²` alone.

use burn::tensor::{DType, Tensor};
use soda_kernels::matmul;

use crate::batch;
use crate::error::LinalgError;
use crate::svd::Svd;

/// A polar decomposition, off the tape: `A = Q P` for a tall or square `A`, `A = P Q` for a wide one.
#[derive(Clone, Debug)]
pub struct Polar {
    /// Orthonormal columns (rows, if wide), shaped as `A`.
    pub q: Tensor<2>,
    /// Symmetric positive semidefinite, `[k, k]`, `k` the smaller side of `A`.
    pub p: Tensor<2>,
}

impl Polar {
    /// Decomposes `a`, `[m, n]`, on the host; where `a` is rank deficient, `Q` is one of many.
    ///
    /// # Errors
    ///
    /// As [`Svd::thin`].
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use soda_linalg::Polar;
    ///
    /// let a = Tensor::<2>::from_data([[0.0, -2.0], [2.0, 0.0]], &Device::default());
    /// let q: Vec<f32> = Polar::new(&a)?.q.try_to_vec_as()?;
    /// assert!((q[1] + 1.0).abs() < 1e-6 && (q[2] - 1.0).abs() < 1e-6);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(a: &Tensor<2>) -> Result<Self, LinalgError> {
        let [rows, cols] = a.dims();
        let Svd { u, s, vt } = Svd::thin(a)?;
        let frame = if rows < cols { u.clone() } else { vt.clone().transpose() };
        let p = matmul(frame.clone() * s.unsqueeze_dim(0), frame.transpose());
        Ok(Self { q: matmul(u, vt), p })
    }
}

/// Newton-Schulz on `[b, n, m]`, `n >= m`, each matrix first scaled below spectral norm 1; at least one
/// iteration.
pub(crate) fn newton_schulz(x: Tensor<3>, iterations: usize) -> Tensor<3> {
    let gram = batch::gram(&x);
    newton_schulz_from(x, gram, iterations)
}

/// The polar retraction of `X + U` for a tangent `U`; reads one number back, `|XᵀX|`, to know how long
/// to iterate.
pub(crate) fn retract(x: Tensor<3>) -> Tensor<3> {
    let gram = batch::gram(&x);
    let count = iterations_within(batch::norm_bound(&gram) - 1.0, x.dtype());
    newton_schulz_from(x, gram, count)
}

fn newton_schulz_from(x: Tensor<3>, gram: Tensor<3>, iterations: usize) -> Tensor<3> {
    let identity = batch::identity(&x);
    // The largest row sum bounds the largest eigenvalue; of an orthonormal X it is 1.
    let bound = gram.clone().abs().sum_dim(2).max_dim(1).clamp_min(f32::MIN_POSITIVE);
    // As a correction: near the end it is small, and so is its rounding.
    let correct = |x: Tensor<3>, gram: Tensor<3>| {
        x.clone() + matmul(x, (identity.clone() - gram).mul_scalar(0.5))
    };
    let mut x = correct(x / bound.clone().sqrt(), gram / bound);
    for _ in 1..iterations {
        x = correct(x.clone(), batch::gram(&x));
    }
    x
}

/// Iterations after which [`newton_schulz`] is converged to rounding, for an `[n, m]` matrix whose
/// singular values lie in `[1, sqrt(largest)]`: what a tangent step away from an orthonormal matrix
/// gives.
pub(crate) fn iterations(largest: f64, m: usize, dtype: DType) -> usize {
    // `|X^T X|_inf - 1 <= sqrt(m) (largest - 1)`, and that is what the scaling divides by.
    iterations_within((m as f64).sqrt() * (largest - 1.0), dtype)
}

/// The same from a bound on `|XᵀX|_inf - 1`.
fn iterations_within(excess: f64, dtype: DType) -> usize {
    let target = if dtype == DType::F64 { 1e-17 } else { 1e-9 };
    let excess = excess.max(0.0);
    let squared = |error: f64| error * error * (3.0 + error) / 4.0;
    let (mut error, mut count) = (excess / (1.0 + excess), 1);
    // NaN compares false and ends at once; infinity over infinity is one.
    while squared(error) > target && count < MAX_ITERATIONS {
        error = squared(error);
        count += 1;
    }
    count
}

/// Enough for a spectrum of 1e-8 and below.
const MAX_ITERATIONS: usize = 60;
