//! A bias added to the rows of a tensor.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;

use crate::backend::Kernels;

/// [`Kernels::add_bias`].
pub(crate) fn add_bias<B: Kernels>(x: FloatTensor<B>, bias: FloatTensor<B>) -> FloatTensor<B> {
    let (shape, [k, c]) = (x.shape(), bias.shape().dims());
    let rows = shape.num_elements() / (k * c);
    let x = B::float_reshape(x, [k, rows, c].into());
    B::float_reshape(B::float_add(x, B::float_reshape(bias, [k, 1, c].into())), shape)
}
