//! The eigendecomposition of a symmetric matrix, `A = V diag(λ) Vᵀ`.
//!
//! By tridiagonalisation and divide and conquer on the host (Golub and Van Loan, Matrix Computations,
//! 8.3 and 8.4). `λ` ascends; the entry of largest magnitude in each eigenvector is positive.

use burn::tensor::Tensor;
use faer::Side;
use soda_kernels::matmul;

use crate::error::LinalgError;
use crate::host::{self, Host, Real};

/// A symmetric eigendecomposition, off the tape.
#[derive(Clone, Debug)]
pub struct SymmetricEigen {
    /// Eigenvalues, `[n]`, ascending.
    pub values: Tensor<1>,
    /// Orthonormal eigenvectors, one per column, `[n, n]`.
    pub vectors: Tensor<2>,
}

impl SymmetricEigen {
    /// Decomposes `a`, `[n, n]`, symmetric to rounding; in f64 where `a` is, else in f32.
    ///
    /// # Errors
    ///
    /// If `a` is not square or not symmetric, empty or not finite, if an eigenvalue overflows, if the
    /// iteration does not converge, or if `a` cannot be read.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use soda_linalg::SymmetricEigen;
    ///
    /// let a = Tensor::<2>::from_data([[2.0, 1.0], [1.0, 2.0]], &Device::default());
    /// let values: Vec<f32> = SymmetricEigen::new(&a)?.values.try_to_vec_as()?;
    /// assert!((values[0] - 1.0).abs() < 1e-6 && (values[1] - 3.0).abs() < 1e-6);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(a: &Tensor<2>) -> Result<Self, LinalgError> {
        if host::is_double(a) { decompose::<f64>(a) } else { decompose::<f32>(a) }
    }

    /// `V diag(λ) Vᵀ`, `[n, n]`.
    pub fn recompose(&self) -> Tensor<2> {
        let scaled = self.vectors.clone() * self.values.clone().unsqueeze_dim(0);
        matmul(scaled, self.vectors.clone().transpose())
    }
}

fn decompose<T: Real>(a: &Tensor<2>) -> Result<SymmetricEigen, LinalgError> {
    let [rows, cols] = a.dims();
    if rows != cols {
        return Err(LinalgError::NotSquare { rows, cols });
    }
    let host = Host::<T>::read(a)?;
    for i in 0..rows {
        for j in 0..i {
            // Entries are below 1: an absolute difference is one relative to the matrix.
            let difference = (host.mat[(i, j)].to_double() - host.mat[(j, i)].to_double()).abs();
            if difference > 16.0 * T::epsilon_impl().to_double() {
                return Err(LinalgError::NotSymmetric { row: i, col: j, n: rows });
            }
        }
    }
    let eigen = host.mat.self_adjoint_eigen(Side::Lower).map_err(|_| host.no_convergence())?;
    let mut vectors = eigen.U().to_owned();
    for column in vectors.col_iter_mut() {
        host::make_largest_positive(column, None);
    }
    let values = host.rescale(eigen.S().column_vector().iter().copied())?;
    let device = host::plain_device(a);
    Ok(SymmetricEigen {
        values: host::vector(values, &device),
        vectors: host::matrix(vectors.as_ref(), &device),
    })
}
