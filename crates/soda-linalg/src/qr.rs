//! The thin QR and LQ decompositions.

use burn::tensor::Tensor;
use soda_kernels::matmul;

use crate::error::LinalgError;
use crate::host::qr as on_host;

/// The thin QR decomposition `A = Q R` of an `m x n` matrix, with `k = min(m, n)`.
///
/// It is computed on the host by Householder reflections (Golub and Van Loan, Matrix Computations, 5.2), in
/// about `4 m n² - 4/3 n³` flops for `m >= n`. Both tensors are constants without autodiff, on the device of
/// `A`: in f64 if `A` is f64, else in f32.
///
/// **Sign convention.** The diagonal of `R` is non-negative, which makes the decomposition of a matrix of
/// full rank unique.
#[derive(Clone, Debug)]
pub struct Qr {
    /// The orthonormal columns `Q`, `[m, k]`.
    pub q: Tensor<2>,
    /// The upper triangular `R`, `[k, n]`; trapezoidal if `A` is wide.
    pub r: Tensor<2>,
}

/// The thin LQ decomposition `A = L Q` of an `m x n` matrix, with `k = min(m, n)`.
///
/// It is the transposed QR decomposition of `Aᵀ`. The diagonal of `L` is non-negative. Dtype and device are
/// those of [`Qr`].
#[derive(Clone, Debug)]
pub struct Lq {
    /// The lower triangular `L`, `[m, k]`; trapezoidal if `A` is tall.
    pub l: Tensor<2>,
    /// The orthonormal rows `Q`, `[k, n]`.
    pub q: Tensor<2>,
}

impl Qr {
    /// Decomposes the `[m, n]` matrix `a`.
    ///
    /// An autodiff tensor is read as a constant: no gradient flows through the factors.
    ///
    /// # Errors
    ///
    /// - [`LinalgError::Empty`] or [`LinalgError::NotFinite`] if `a` is empty, or an entry is NaN or
    ///   infinite.
    /// - [`LinalgError::Overflow`] if an entry of `R` exceeds the range of the dtype.
    /// - [`LinalgError::Read`] if `a` cannot be read from its device.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use soda_linalg::Qr;
    ///
    /// let a = Tensor::<2>::from_data([[-3.0, 1.0], [4.0, 2.0]], &Device::default());
    /// let qr = Qr::thin(&a)?;
    /// let r: Vec<f32> = qr.r.try_to_vec_as()?;
    /// assert!((r[0] - 5.0).abs() < 1e-5 && (r[3] - 2.0).abs() < 1e-5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn thin(a: &Tensor<2>) -> Result<Self, LinalgError> {
        on_host::thin(a).map(|(q, r)| Self { q, r })
    }

    /// Decomposes many matrices, one per core at a time; each result is in the place of its matrix.
    ///
    /// # Errors
    ///
    /// Each result has the errors of [`Qr::thin`].
    pub fn thin_batch(matrices: &[Tensor<2>]) -> Vec<Result<Self, LinalgError>> {
        let results = on_host::thin_batch(matrices).into_iter();
        results.map(|factors| factors.map(|(q, r)| Self { q, r })).collect()
    }

    /// Returns `Q R`, `[m, n]`.
    pub fn recompose(&self) -> Tensor<2> {
        matmul(self.q.clone(), self.r.clone())
    }
}

impl Lq {
    /// Decomposes the `[m, n]` matrix `a`.
    ///
    /// # Errors
    ///
    /// The errors of [`Qr::thin`], with rows and columns of the transposed matrix.
    pub fn thin(a: &Tensor<2>) -> Result<Self, LinalgError> {
        let Qr { q, r } = Qr::thin(&a.clone().transpose())?;
        Ok(Self { l: r.transpose(), q: q.transpose() })
    }

    /// Returns `L Q`, `[m, n]`.
    pub fn recompose(&self) -> Tensor<2> {
        matmul(self.l.clone(), self.q.clone())
    }
}
