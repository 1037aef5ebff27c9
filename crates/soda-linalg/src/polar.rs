//! The polar decomposition of any matrix, by its singular value decomposition.

use burn::tensor::Tensor;
use soda_kernels::matmul;

use crate::error::LinalgError;
use crate::svd::Svd;

/// The polar decomposition of an `m x n` matrix: `A = Q P` if `m >= n`, and `A = P Q` if `m < n`.
///
/// `Q = A (AᵀA)^(-1/2)` is the nearest matrix to `A` with orthonormal columns (rows, if `A` is wide). It is
/// unique if `A` has full rank.
///
/// With `A = U diag(s) Vᵀ`, `Q = U Vᵀ`, which is accurate for any rank. The cost is that of the [`Svd`] and
/// two matrix products; dtype and device are those of [`Svd`].
#[derive(Clone, Debug)]
pub struct Polar {
    /// The orthonormal factor `Q`, `[m, n]`.
    pub q: Tensor<2>,
    /// The symmetric positive semidefinite factor `P`, `[k, k]`, with `k = min(m, n)`.
    pub p: Tensor<2>,
}

impl Polar {
    /// Decomposes the `[m, n]` matrix `a` on the host. If `a` is rank-deficient, `Q` is one of many.
    ///
    /// # Errors
    ///
    /// The errors of [`Svd::thin`].
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
