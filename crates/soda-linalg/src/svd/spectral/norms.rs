//! The sum of entries and the Frobenius norm of each matrix of a batch, and the machine epsilon of its dtype.

use burn::tensor::{DType, Tensor};
use soda_kernels::{has_vendor_blas, matmul};

/// The sum of all entries of each matrix, `[b, 1, 1]`.
pub(super) fn total(x: Tensor<3>) -> Tensor<3> {
    if !has_vendor_blas(&x) {
        return x.sum_dim(2).sum_dim(1);
    }
    // A BLAS product with ones is many times as fast as burn's sum of long rows.
    let [b, m, n] = x.dims();
    let ones = Tensor::ones([n, 1], (&x.device(), x.dtype()));
    matmul(x.reshape([b * m, n]), ones).reshape([b, m, 1]).sum_dim(1)
}

/// The Frobenius norm of each matrix, `[b, 1, 1]`.
pub(super) fn frobenius(x: &Tensor<3>) -> Tensor<3> {
    total(x.clone().square()).sqrt()
}

/// The machine epsilon of f64 for f64 tensors, and of f32 for all others.
pub(super) fn epsilon(x: &Tensor<3>) -> f64 {
    if x.dtype() == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) }
}
