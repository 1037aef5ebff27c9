//! The identity, the Gram matrix, the symmetric and the skew part, and a norm bound.

use burn::tensor::Tensor;
use soda_kernels::matmul;

/// The identity `[1, n, n]` for a batch `[b, _, n]`, in its dtype; it broadcasts over the batch.
pub(crate) fn identity_like(batch: &Tensor<3>) -> Tensor<3> {
    let [_, _, n] = batch.dims();
    // Without autodiff, so that the constant combines with tensors of either kind.
    let device = batch.device().without_autodiff();
    Tensor::<2>::eye(n, &device).cast(batch.dtype()).unsqueeze_dim(0)
}

/// `XᵀX`, `[b, m, m]` for `[b, n, m]`.
pub(crate) fn gram(x: &Tensor<3>) -> Tensor<3> {
    matmul(x.clone().transpose(), x.clone())
}

/// The symmetric part `(A + Aᵀ) / 2`.
pub(crate) fn symmetric_part(a: Tensor<3>) -> Tensor<3> {
    (a.clone() + a.transpose()).mul_scalar(0.5)
}

/// The skew-symmetric part `(A - Aᵀ) / 2`.
pub(crate) fn skew_part(a: Tensor<3>) -> Tensor<3> {
    (a.clone() - a.transpose()).mul_scalar(0.5)
}

/// The sum of magnitudes of each row, `[b, n, 1]`, without autodiff.
pub(super) fn absolute_row_sums(a: &Tensor<3>) -> Tensor<3> {
    a.clone().without_autodiff().abs().sum_dim(2)
}

/// The largest `|A|_inf` of the batch: an upper bound on the spectral norms of symmetric and skew matrices.
///
/// Reads one number back from the device, and returns infinity if the read fails.
pub(super) fn norm_bound(a: &Tensor<3>) -> f64 {
    absolute_row_sums(a).max().try_into_scalar::<f32>().map_or(f64::INFINITY, f64::from)
}
