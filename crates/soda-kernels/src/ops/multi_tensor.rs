//! Concatenation and split of many small vectors: one launch for up to 160 of them on CUDA, one for each
//! elsewhere.

use burn::tensor::Tensor;

use crate::cuda;

/// Concatenates vectors of one dtype: `Tensor::cat(tensors, 0)`.
///
/// Vectors off the autodiff tape take the fused copy of the device.
///
/// # Panics
/// If there are no tensors.
pub fn multi_tensor_cat(tensors: Vec<Tensor<1>>) -> Tensor<1> {
    cuda::multi_tensor_cat(&tensors).unwrap_or_else(|| Tensor::cat(tensors, 0))
}

/// Splits `x` into consecutive vectors of these lengths, which sum to the length of `x`.
///
/// A vector off the autodiff tape takes the fused copy of the device.
pub fn multi_tensor_split(x: Tensor<1>, lengths: &[usize]) -> Vec<Tensor<1>> {
    cuda::multi_tensor_split(&x, lengths).unwrap_or_else(|| x.split_with_sizes(lengths.to_vec(), 0))
}
