//! Geodesics of the canonical metric, and the skew-symmetric matrix that generates them.

use burn::tensor::Tensor;
use soda_kernels::matmul;

use crate::batched::{BatchLayout, exponential};

/// Returns the point at time `t` on the geodesic of the canonical metric from `x` along the tangent `u`.
///
/// `x`, `u` and the result are `[..., n, m]`. The geodesic is `exp(t W) X` with the skew-symmetric `n x n`
/// matrix
///
/// ```text
/// W = P U Xᵀ - X Uᵀ P,    P = I - X Xᵀ / 2,    W X = U
/// ```
///
/// (Edelman, Arias and Smith 1998, 2.4; the form of `W` is from Wen and Yin, A feasible method for
/// optimization with orthogonality constraints, 2013). Autodiff tensors are differentiated.
///
/// # Panics
///
/// If the shapes differ.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use soda_linalg::stiefel;
///
/// let x = stiefel::random_point([4, 4], &Device::default());
/// let u = stiefel::project_tangent(x.clone(), x.random_like(Distribution::Normal(0.0, 0.1)));
/// let end = stiefel::geodesic(x.clone(), u.clone(), 1.0);
/// assert!(stiefel::logarithm(&x, &end)?.all_close(u, None, Some(1e-4)));
/// # Ok::<(), soda_linalg::LinalgError>(())
/// ```
pub fn geodesic<const D: usize>(x: Tensor<D>, u: Tensor<D>, t: f64) -> Tensor<D> {
    let layout = BatchLayout::from_tensor(&x);
    if layout.is_empty() {
        return x;
    }
    let (x, u) = (layout.flatten(x), layout.flatten(u));
    layout.unflatten(matmul(exponential(generator(&x, &u).mul_scalar(t)), x))
}

/// `W`, `[b, n, n]`, for a tangent `u` at `x`, both `[b, n, m]`.
pub(super) fn generator(x: &Tensor<3>, u: &Tensor<3>) -> Tensor<3> {
    // P U Xᵀ is (U - X (XᵀU) / 2) Xᵀ, and X Uᵀ P is its transpose.
    let inner = matmul(x.clone().transpose(), u.clone());
    let pu = u.clone() - matmul(x.clone(), inner).mul_scalar(0.5);
    let half = matmul(pu, x.clone().transpose());
    half.clone() - half.transpose()
}
