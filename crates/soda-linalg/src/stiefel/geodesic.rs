//! Geodesics of the canonical metric, and the skew matrix that generates them.
//!
//! A tangent `U` at `X` is `U = W X` with the skew `n x n` matrix
//!
//! ```text
//! W = P U Xᵀ - X Uᵀ P,    P = I - X Xᵀ / 2
//! ```
//!
//! and the geodesic from `X` along `U` is `exp(t W) X` (Edelman, Arias and Smith 1998, 2.4; Wen and
//! Yin, A feasible method, 2013, for the form of `W`). The Cayley transform of `W/2` instead of the
//! exponential is a retraction that agrees to second order.

use burn::tensor::Tensor;
use soda_kernels::matmul;

use crate::batch;
use crate::stack::Stack;

/// The point at time `t` on the canonical geodesic from `x` along the tangent `u`.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use soda_linalg::stiefel;
///
/// let x = stiefel::random([4, 4], &Device::default());
/// let u = stiefel::tangent(x.clone(), x.random_like(Distribution::Normal(0.0, 0.1)));
/// let there = stiefel::geodesic(x.clone(), u.clone(), 1.0);
/// assert!(stiefel::logarithm(&x, &there)?.all_close(u, None, Some(1e-4)));
/// # Ok::<(), soda_linalg::LinalgError>(())
/// ```
pub fn geodesic<const D: usize>(x: Tensor<D>, u: Tensor<D>, t: f64) -> Tensor<D> {
    let stack = Stack::of(&x);
    if stack.is_empty() {
        return x;
    }
    let (x, u) = (stack.fold(x), stack.fold(u));
    stack.unfold(matmul(batch::exp(generator(&x, &u).mul_scalar(t)), x))
}

/// `W`, `[b, n, n]`, for a tangent `u` at `x`, both `[b, n, m]`.
pub(crate) fn generator(x: &Tensor<3>, u: &Tensor<3>) -> Tensor<3> {
    // P U Xᵀ is (U - X (XᵀU) / 2) Xᵀ, and the rest is its transpose.
    let inner = matmul(x.clone().transpose(), u.clone());
    let pu = u.clone() - matmul(x.clone(), inner).mul_scalar(0.5);
    let half = matmul(pu, x.clone().transpose());
    half.clone() - half.transpose()
}
