//! A bias added to the rows of a tensor.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};

/// `Kernels::add_bias`.
pub(crate) fn add_bias<B: Backend>(x: FloatTensor<B>, bias: FloatTensor<B>) -> FloatTensor<B> {
    let (shape, [k, c]) = (x.shape(), bias.shape().dims());
    let rows = shape.num_elements() / (k * c);
    let x = B::float_reshape(x, [k, rows, c].into());
    B::float_reshape(B::float_add(x, B::float_reshape(bias, [k, 1, c].into())), shape)
}
