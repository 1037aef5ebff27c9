//! Tangents: projection onto a tangent space, and transport between two.

use burn::tensor::Tensor;
use soda_kernels::matmul;

use crate::batched::{BatchLayout, symmetric_part};

/// Returns the orthogonal projection of `u` onto the tangent space at `x`, `U - X sym(XᵀU)`.
///
/// `x`, `u` and the result are `[..., n, m]`. The tangents at `X` are the matrices `U` with skew-symmetric
/// `XᵀU`: to first order, `X + U` is orthonormal. `x` must be orthonormal
/// ([`check_orthonormal`](super::check_orthonormal)).
///
/// # Panics
///
/// If the shapes differ.
///
/// ```
/// use burn::tensor::{Device, Distribution};
/// use soda_linalg::stiefel;
///
/// let x = stiefel::random_point([8, 4], &Device::default());
/// let u = stiefel::project_tangent(x.clone(), x.random_like(Distribution::Default));
/// let inner = x.transpose().matmul(u);
/// assert!(inner.clone().all_close(-inner.transpose(), None, Some(1e-5)));
/// ```
pub fn project_tangent<const D: usize>(x: Tensor<D>, u: Tensor<D>) -> Tensor<D> {
    let layout = BatchLayout::from_tensor(&x);
    if layout.is_empty() {
        return u;
    }
    layout.unflatten(project_tangent_batch(&layout.flatten(x), layout.flatten(u)))
}

/// Transports the tangent `u` to the tangent space at `to`, by projection; both are `[..., n, m]`.
///
/// For a short step this is the parallel transport to first order (Absil, Mahony and Sepulchre, 8.1.3).
///
/// # Panics
///
/// If the shapes differ.
pub fn transport<const D: usize>(to: Tensor<D>, u: Tensor<D>) -> Tensor<D> {
    project_tangent(to, u)
}

/// [`project_tangent`] for batches `[b, n, m]`, `n >= m`.
pub(crate) fn project_tangent_batch(x: &Tensor<3>, u: Tensor<3>) -> Tensor<3> {
    let inner = matmul(x.clone().transpose(), u.clone());
    u - matmul(x.clone(), symmetric_part(inner))
}
