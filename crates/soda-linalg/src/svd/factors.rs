//! The factors of a thin singular value decomposition, and their sign convention.

use burn::tensor::Tensor;
use soda_kernels::matmul;

/// The sign conventions of [`Svd`] and [`Qr`](crate::Qr), as text for files whose numbers depend on them.
pub const SIGN_CONVENTION: &str =
    "svd: largest entry of each column of U positive; qr: diagonal of R not negative";

/// The thin singular value decomposition `A = U diag(s) Vᵀ` of an `m x n` matrix, with `k = min(m, n)`.
///
/// The columns of `U` and of `V` are orthonormal, and `s` is non-negative and descending. All three tensors
/// are constants without autodiff, on the device of `A`: in f64 if `A` is f64, else in f32.
///
/// **Sign convention.** A pair of singular vectors is unique up to one common sign. In each column of `U` the
/// first entry of largest magnitude is positive. Numbers stored relative to this basis then mean the same on
/// every machine.
///
/// Vectors of equal singular values are unique only up to a rotation, which no sign convention removes.
///
/// | constructor | where | arithmetic of f32 and half precisions |
/// |---|---|---|
/// | [`Svd::thin`] | host, all cores on one matrix | f32 |
/// | [`Svd::thin_batch`] | host, one matrix per core, or the GPU | f32 |
/// | [`Svd::thin_batch_via_f64`] | host, one matrix per core | f64, rounded once |
/// | [`Svd::thin_batch_spectral_divide`] | the device of the matrices | f32 |
///
/// The host computes by bidiagonalisation and divide and conquer (Golub and Van Loan, Matrix Computations,
/// 8.6), in about `14 m n² + 8 n³` flops for `m >= n`.
#[derive(Clone, Debug)]
pub struct Svd {
    /// The left singular vectors `U`, `[m, k]`, one per column.
    pub u: Tensor<2>,
    /// The singular values, `[k]`, descending.
    pub s: Tensor<1>,
    /// The right singular vectors `Vᵀ`, `[k, n]`, one per row.
    pub vt: Tensor<2>,
}

impl Svd {
    /// Returns `U diag(s) Vᵀ`, `[m, n]`.
    pub fn recompose(&self) -> Tensor<2> {
        matmul(self.u.clone() * self.s.clone().unsqueeze_dim(0), self.vt.clone())
    }
}
