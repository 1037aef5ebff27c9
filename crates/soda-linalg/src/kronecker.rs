//! Kronecker products as elements of a group: composed, inverted, interpolated factor by factor.
//!
//! ```text
//! (A ⊗ B)(C ⊗ D) = AC ⊗ BD        (A ⊗ B)ᵀ = Aᵀ ⊗ Bᵀ        (A ⊗ B)⁻¹ = A⁻¹ ⊗ B⁻¹
//! log(A ⊗ B) = log A ⊗ I + I ⊗ log B        det(A ⊗ B) = det(A)^q det(B)^p  (A p x p, B q x q)
//! ```
//!
//! (Van Loan, The ubiquitous Kronecker product, 2000; Higham, Functions of Matrices, 10.1.) By the third
//! line a geodesic of each factor is a geodesic of the whole: strength and merging of rotations never
//! need the product.

use burn::tensor::Tensor;
use soda_kernels::matmul;

use crate::error::LinalgError;
use crate::host::Host;
use crate::kron::{kron_left, kron_right};
use crate::rotation::{rotation_exp, rotation_log};

/// `A1 ⊗ A2 ⊗ … ⊗ Am` with square factors, the first the slowest index; at least one.
#[derive(Clone, Debug)]
pub struct Kronecker {
    factors: Vec<Tensor<2>>,
}

impl Kronecker {
    /// The product of these factors.
    ///
    /// # Errors
    ///
    /// If there is none, or one is not square.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use soda_linalg::Kronecker;
    ///
    /// let (sin, cos) = 0.6_f32.sin_cos();
    /// let turn = Tensor::<2>::from_data([[cos, -sin], [sin, cos]], &Device::default());
    /// let r = Kronecker::new(vec![turn.clone(), turn])?;
    /// let half = r.power(0.5)?;
    /// let whole = half.compose(&half)?;
    /// let x = Tensor::<2>::eye(4, &Device::default());
    /// assert!(whole.apply_right(x.clone()).all_close(r.apply_right(x), None, Some(1e-6)));
    /// # Ok::<(), soda_linalg::LinalgError>(())
    /// ```
    pub fn new(factors: Vec<Tensor<2>>) -> Result<Self, LinalgError> {
        if factors.is_empty() {
            return Err(LinalgError::NoFactors { n: 1, parts: 0 });
        }
        match factors.iter().map(Tensor::dims).find(|[rows, cols]| rows != cols) {
            Some([rows, cols]) => Err(LinalgError::NotSquare { rows, cols }),
            None => Ok(Self { factors }),
        }
    }

    /// The factors.
    pub fn factors(&self) -> &[Tensor<2>] {
        &self.factors
    }

    /// The width it acts on, `Π nᵢ`.
    pub fn width(&self) -> usize {
        self.factors.iter().map(|factor| factor.dims()[0]).product()
    }

    /// `x (A1 ⊗ … ⊗ Am)`, as [`kron_right`].
    ///
    /// # Panics
    ///
    /// If `x` has other than [`Kronecker::width`] columns.
    #[track_caller]
    pub fn apply_right(&self, x: Tensor<2>) -> Tensor<2> {
        kron_right(x, &self.factors)
    }

    /// `(A1 ⊗ … ⊗ Am) w`, as [`kron_left`].
    ///
    /// # Panics
    ///
    /// If `w` has other than [`Kronecker::width`] rows.
    #[track_caller]
    pub fn apply_left(&self, w: Tensor<2>) -> Tensor<2> {
        kron_left(&self.factors, w)
    }

    /// The matrix product `self · other`, factor by factor.
    ///
    /// # Errors
    ///
    /// If the factors' sizes differ: the product is then no Kronecker product of such factors.
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

    /// The transpose; for orthogonal factors the inverse.
    pub fn transpose(&self) -> Self {
        Self { factors: self.factors.iter().map(|factor| factor.clone().transpose()).collect() }
    }

    /// The skew logarithms `Lᵢ` of orthogonal factors: the logarithm of the product is
    /// `L1 ⊗ I ⊗ … + I ⊗ L2 ⊗ … + …`.
    ///
    /// # Errors
    ///
    /// If a factor reflects or turns by half a turn, is not finite or cannot be read.
    pub fn log(&self) -> Result<Vec<Tensor<2>>, LinalgError> {
        self.factors.iter().map(rotation_log).collect()
    }

    /// The rotation with these logarithms, the inverse of [`Kronecker::log`].
    ///
    /// # Errors
    ///
    /// If there is none, or one is not square, not finite or cannot be read.
    pub fn exp(logarithms: &[Tensor<2>]) -> Result<Self, LinalgError> {
        Self::new(logarithms.iter().map(rotation_exp).collect::<Result<_, _>>()?)
    }

    /// `exp(t log R)`: strength `t` along the geodesic from the identity.
    ///
    /// # Errors
    ///
    /// As [`Kronecker::log`].
    pub fn power(&self, t: f64) -> Result<Self, LinalgError> {
        let scaled: Vec<_> = self.log()?.into_iter().map(|log| log.mul_scalar(t)).collect();
        Self::exp(&scaled)
    }

    /// Whether the determinant is positive (1), negative (-1) or zero (0).
    ///
    /// # Errors
    ///
    /// If a factor is not finite or cannot be read.
    pub fn determinant_sign(&self) -> Result<i8, LinalgError> {
        let width = self.width();
        let mut sign = 1.0;
        for factor in &self.factors {
            let n = factor.dims()[0];
            let determinant = Host::<f64>::read(factor)?.mat.determinant();
            // A pivot of zero leaves NaN.
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
