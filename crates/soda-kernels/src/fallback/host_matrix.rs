//! Copies of matrices in host memory by burn, which waits for each.

use burn::backend::Backend;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{TensorMetadata, tensor::Device};

use crate::host_matrix::HostMatrix;

/// The floats `[rows, columns]` of a matrix, on the device of `like`.
pub(crate) fn floats<B: Backend>(matrix: &HostMatrix, like: &FloatTensor<B>) -> FloatTensor<B> {
    let device: Device<B> = like.device();
    B::float_from_data(matrix.to_data(), &device)
}

/// The words of a quantized matrix, on the device of `like`.
pub(crate) fn words<B: Backend>(matrix: &HostMatrix, like: &FloatTensor<B>) -> IntTensor<B> {
    let device: Device<B> = like.device();
    B::int_from_data(matrix.to_data(), &device)
}
