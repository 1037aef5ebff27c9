//! The Stiefel manifold `St(n, m)`: matrices `X`, `n x m`, with orthonormal columns, `XᵀX = I`.
//!
//! A wide matrix has orthonormal rows instead; a square one is orthogonal. Every function takes any
//! rank: leading axes are a batch, `[..., n, m]`. Works on any device, in the dtype of its arguments
//! (half precisions in f32).
//!
//! | function | what | cost, products of `n x m` by `m x m` |
//! |---|---|---|
//! | [`tangent`] | projects onto the tangent space | 2 |
//! | [`transport`] | carries a tangent to another point, by projection | 2 |
//! | [`Retraction`] | back to the manifold from `X + U` | polar 2 per iteration |
//! | [`geodesic()`] | `exp(t W) X`, the canonical geodesic | one `n x n` exponential |
//! | [`logarithm()`] | the inverse of the geodesic, on the host | a few `2m x 2m` logarithms |
//! | [`distance`] | length of the logarithm | the same |
//! | [`random`] | uniform (Haar) | polar of a Gaussian |
//!
//! Sources: Edelman, Arias and Smith, The geometry of algorithms with orthogonality constraints (SIAM
//! J. Matrix Anal. 1998); Absil, Mahony and Sepulchre, Optimization algorithms on matrix manifolds
//! (2008), chapters 3 to 5.

mod defect;
pub mod geodesic;
pub mod logarithm;
pub mod retraction;

pub use defect::{check, defect};
pub use geodesic::geodesic;
pub use logarithm::{distance, logarithm};
pub use retraction::Retraction;

use burn::tensor::{Device, Distribution, Tensor};
use soda_kernels::matmul;

use crate::batch;
use crate::polar;
use crate::stack::Stack;

/// The orthogonal projection of `u` onto the tangent space at `x`, `U - X sym(XᵀU)`.
///
/// The tangents are those `U` with `XᵀU` skew: to first order, `X + U` stays orthonormal.
pub fn tangent<const D: usize>(x: Tensor<D>, u: Tensor<D>) -> Tensor<D> {
    let stack = Stack::of(&x);
    if stack.is_empty() {
        return u;
    }
    stack.unfold(project(&stack.fold(x), stack.fold(u)))
}

/// Carries the tangent `u` to the tangent space at `to`, by projection: to first order the parallel
/// transport along a short step (Absil, Mahony and Sepulchre, 8.1.3).
pub fn transport<const D: usize>(to: Tensor<D>, u: Tensor<D>) -> Tensor<D> {
    tangent(to, u)
}

/// A random point of the given shape in the device's float type, uniform under the orthogonal group:
/// the polar factor of a Gaussian matrix. Drawn from the device's generator (`Device::seed`).
///
/// ```
/// use burn::tensor::Device;
/// use soda_linalg::stiefel;
///
/// let x = stiefel::random([7, 20, 5], &Device::default()); // seven points of St(20, 5)
/// assert!(stiefel::defect(&x)? < 2e-6);
/// # Ok::<(), soda_linalg::LinalgError>(())
/// ```
pub fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let gaussian = Tensor::random(shape, Distribution::Normal(0.0, 1.0), device);
    let stack = Stack::of(&gaussian);
    if stack.is_empty() {
        return gaussian;
    }
    // A square Gaussian's least singular value is about 1/n of its largest, seldom far below.
    let x = polar::newton_schulz(stack.fold(gaussian), RANDOM_ITERATIONS);
    stack.unfold(x)
}

/// From a least singular value of 1e-6 of the largest: 1.5 each, then a few of quadratic convergence.
const RANDOM_ITERATIONS: usize = 40;

/// [`tangent`] on `[b, n, m]`.
pub(crate) fn project(x: &Tensor<3>, u: Tensor<3>) -> Tensor<3> {
    let inner = matmul(x.clone().transpose(), u.clone());
    u - matmul(x.clone(), batch::sym(inner))
}
