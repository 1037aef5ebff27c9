//! Tensors of the CPU backend as slices.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{DType, Shape, TensorData};

/// A tensor of the CPU backend.
pub(super) type FlexTensor = FloatTensor<Flex>;

/// Whether all tensors are in float32, which these kernels compute in, and not empty.
pub(super) fn all_f32(tensors: &[&FlexTensor]) -> bool {
    tensors.iter().all(|x| x.dtype() == DType::F32 && x.shape().num_elements() > 0)
}

/// The elements of a contiguous tensor, in row-major order.
///
/// # Panics
/// If the tensor is not contiguous; `to_contiguous` makes it so.
pub(super) fn values(x: &FlexTensor) -> &[f32] {
    x.as_slice().expect("a contiguous tensor of float32")
}

/// A contiguous tensor with these elements.
pub(super) fn from_values(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.into()))
}
