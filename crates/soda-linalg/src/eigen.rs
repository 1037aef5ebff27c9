//! The eigendecomposition of a symmetric matrix.

use burn::tensor::Tensor;
use soda_kernels::matmul;

use crate::error::LinalgError;
use crate::host::eigen as on_host;

/// The eigendecomposition `A = V diag(λ) Vᵀ` of a symmetric `n x n` matrix.
///
/// It is computed on the host by tridiagonalisation and divide and conquer (Golub and Van Loan, Matrix
/// Computations, 8.3 and 8.4), in about `9 n³` flops. Both tensors are constants without autodiff, on the
/// device of `A`: in f64 if `A` is f64, else in f32.
///
/// **Sign convention.** In each eigenvector the first entry of largest magnitude is positive.
#[derive(Clone, Debug)]
pub struct SymmetricEigen {
    /// The eigenvalues `λ`, `[n]`, ascending.
    pub eigenvalues: Tensor<1>,
    /// The orthonormal eigenvectors `V`, `[n, n]`, one per column.
    pub eigenvectors: Tensor<2>,
}

impl SymmetricEigen {
    /// Decomposes the `[n, n]` matrix `a`, which must be symmetric to within 16 eps of its largest entry.
    ///
    /// # Errors
    ///
    /// - [`LinalgError::NotSquare`] or [`LinalgError::NotSymmetric`] if `a` is not square or not symmetric.
    /// - [`LinalgError::Empty`] or [`LinalgError::NotFinite`] if `a` is empty, or an entry is NaN or
    ///   infinite.
    /// - [`LinalgError::Overflow`] if an eigenvalue exceeds the range of the dtype.
    /// - [`LinalgError::NoConvergence`] if the iteration does not converge.
    /// - [`LinalgError::Read`] if `a` cannot be read from its device.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use soda_linalg::SymmetricEigen;
    ///
    /// let a = Tensor::<2>::from_data([[2.0, 1.0], [1.0, 2.0]], &Device::default());
    /// let values: Vec<f32> = SymmetricEigen::new(&a)?.eigenvalues.try_to_vec_as()?;
    /// assert!((values[0] - 1.0).abs() < 1e-6 && (values[1] - 3.0).abs() < 1e-6);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(a: &Tensor<2>) -> Result<Self, LinalgError> {
        let (eigenvalues, eigenvectors) = on_host::symmetric(a)?;
        Ok(Self { eigenvalues, eigenvectors })
    }

    /// Returns `V diag(λ) Vᵀ`, `[n, n]`.
    pub fn recompose(&self) -> Tensor<2> {
        let scaled = self.eigenvectors.clone() * self.eigenvalues.clone().unsqueeze_dim(0);
        matmul(scaled, self.eigenvectors.clone().transpose())
    }
}
