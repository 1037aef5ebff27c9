//! A matrix as its Kronecker factors: products, inverses and powers, factor by factor.

use burn::tensor::Tensor;
use soda_kernels::matmul;

use super::product::{kron_left, kron_right};
use crate::error::LinalgError;
use crate::host::HostMatrix;
use crate::rotation::{rotation_exp, rotation_log};

/// The matrix `A1 ⊗ A2 ⊗ … ⊗ Am` with square factors, at least one; the first has the slowest index.
///
/// ```text
/// (A ⊗ B)(C ⊗ D) = AC ⊗ BD        (A ⊗ B)ᵀ = Aᵀ ⊗ Bᵀ        (A ⊗ B)⁻¹ = A⁻¹ ⊗ B⁻¹
/// log(A ⊗ B) = log A ⊗ I + I ⊗ log B        det(A ⊗ B) = det(A)^q det(B)^p  (A p x p, B q x q)
/// ```
///
/// By the law of the logarithm, geodesics of the factors give the geodesic of the whole rotation. (Van Loan,
/// The ubiquitous Kronecker product, 2000; Higham, Functions of Matrices, 10.1.)
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use soda_linalg::KroneckerMatrix;
///
/// let (sin, cos) = 0.6_f32.sin_cos();
/// let rotation = Tensor::<2>::from_data([[cos, -sin], [sin, cos]], &Device::default());
/// let r = KroneckerMatrix::new(vec![rotation.clone(), rotation])?;
/// let half = r.power(0.5)?;
/// let whole = half.compose(&half)?;
/// let x = Tensor::<2>::eye(4, &Device::default());
/// assert!(whole.apply_right(x.clone()).all_close(r.apply_right(x), None, Some(1e-6)));
/// # Ok::<(), soda_linalg::LinalgError>(())
/// ```
#[derive(Clone, Debug)]
pub struct KroneckerMatrix {
    factors: Vec<Tensor<2>>,
}

impl KroneckerMatrix {
    /// Returns the matrix with the factors `[nᵢ, nᵢ]`.
    ///
    /// # Errors
    ///
    /// [`LinalgError::NoFactors`] if `factors` is empty, and [`LinalgError::NotSquare`] if a factor is not
    /// square.
    pub fn new(factors: Vec<Tensor<2>>) -> Result<Self, LinalgError> {
        if factors.is_empty() {
            return Err(LinalgError::NoFactors);
        }
        match factors.iter().map(Tensor::dims).find(|[rows, cols]| rows != cols) {
            Some([rows, cols]) => Err(LinalgError::NotSquare { rows, cols }),
            None => Ok(Self { factors }),
        }
    }

    /// Returns the factors `Aᵢ`, `[nᵢ, nᵢ]`.
    pub fn factors(&self) -> &[Tensor<2>] {
        &self.factors
    }

    /// Returns the number of rows and columns of the whole matrix, `Π nᵢ`.
    pub fn width(&self) -> usize {
        self.factors.iter().map(|factor| factor.dims()[0]).product()
    }

    /// Returns `x (A1 ⊗ … ⊗ Am)`, `[rows, width]`, for `x` `[rows, width]`, by [`kron_right`].
    ///
    /// # Panics
    ///
    /// If `x` does not have [`KroneckerMatrix::width`] columns.
    #[track_caller]
    pub fn apply_right(&self, x: Tensor<2>) -> Tensor<2> {
        kron_right(x, &self.factors)
    }

    /// Returns `(A1 ⊗ … ⊗ Am) w`, `[width, cols]`, for `w` `[width, cols]`, by [`kron_left`].
    ///
    /// # Panics
    ///
    /// If `w` does not have [`KroneckerMatrix::width`] rows.
    #[track_caller]
    pub fn apply_left(&self, w: Tensor<2>) -> Tensor<2> {
        kron_left(&self.factors, w)
    }

    /// Returns the matrix product `self · other`, factor by factor.
    ///
    /// # Errors
    ///
    /// [`LinalgError::ShapeMismatch`] if the sizes of the factors differ: the product then has no such
    /// factors.
    pub fn compose(&self, other: &Self) -> Result<Self, LinalgError> {
        let sizes =
            |product: &Self| product.factors.iter().map(|a| a.dims()[0]).collect::<Vec<_>>();
        let (left, right) = (sizes(self), sizes(other));
        if left != right {
            return Err(LinalgError::ShapeMismatch { left, right });
        }
        let pairs = self.factors.iter().zip(&other.factors);
        Ok(Self { factors: pairs.map(|(a, b)| matmul(a.clone(), b.clone())).collect() })
    }

    /// Returns the transpose, which is the inverse if the factors are orthogonal.
    #[must_use]
    pub fn transpose(&self) -> Self {
        Self { factors: self.factors.iter().map(|factor| factor.clone().transpose()).collect() }
    }

    /// Returns the skew logarithms `Lᵢ` of orthogonal factors, `[nᵢ, nᵢ]`.
    ///
    /// The logarithm of the whole matrix is `L1 ⊗ I ⊗ … + I ⊗ L2 ⊗ … + …`.
    ///
    /// # Errors
    ///
    /// The errors of [`rotation_log`] for a factor.
    pub fn log(&self) -> Result<Vec<Tensor<2>>, LinalgError> {
        self.factors.iter().map(rotation_log).collect()
    }

    /// Returns the rotation whose factors have the given logarithms; the inverse of [`KroneckerMatrix::log`].
    ///
    /// # Errors
    ///
    /// The errors of [`rotation_exp`] for a factor, and those of [`KroneckerMatrix::new`].
    pub fn exp(logarithms: &[Tensor<2>]) -> Result<Self, LinalgError> {
        Self::new(logarithms.iter().map(rotation_exp).collect::<Result<_, _>>()?)
    }

    /// Returns `exp(t log R)` of a rotation `R`, the point at `t` on the geodesic from the identity to `R`.
    ///
    /// # Errors
    ///
    /// The errors of [`KroneckerMatrix::log`].
    pub fn power(&self, t: f64) -> Result<Self, LinalgError> {
        let scaled: Vec<_> = self.log()?.into_iter().map(|log| log.mul_scalar(t)).collect();
        Self::exp(&scaled)
    }

    /// Returns the sign of the determinant: 1, -1, or 0 if the matrix is singular.
    ///
    /// # Errors
    ///
    /// [`LinalgError::Empty`], [`LinalgError::NotFinite`] or [`LinalgError::Read`] for a factor.
    pub fn determinant_sign(&self) -> Result<i8, LinalgError> {
        let width = self.width();
        let mut sign = 1.0;
        for factor in &self.factors {
            let n = factor.dims()[0];
            let determinant = HostMatrix::<f64>::read(factor)?.scaled_determinant();
            // A pivot of zero gives NaN.
            if determinant.is_nan() || determinant == 0.0 {
                return Ok(0);
            }
            if (width / n) % 2 == 1 {
                sign *= determinant.signum();
            }
        }
        Ok(if sign < 0.0 { -1 } else { 1 })
    }
}
