//! A matrix times a diagonal matrix whose entries are clamped from below, and the gradient by the diagonal.

use burn::backend::tensor::{BoolTensor, FloatTensor};
use burn::backend::{Backend, TensorMetadata, get_or_init_device_settings};
use burn::tensor::Shape;

use super::cast;

/// `Kernels::scale_columns`.
pub(crate) fn forward<B: Backend>(
    l: FloatTensor<B>,
    gain: FloatTensor<B>,
    floor: FloatTensor<B>,
) -> FloatTensor<B> {
    let k = gain.shape().num_elements();
    let clamped = B::float_mask_where(gain.clone(), at_floor::<B>(gain, &floor), floor);
    let clamped = B::float_reshape(cast::<B>(clamped, l.dtype()), Shape::from([1, k]));
    B::float_mul(l, clamped)
}

/// `Kernels::scale_columns_gradient`.
pub(crate) fn gradient<B: Backend>(
    l: FloatTensor<B>,
    dy: FloatTensor<B>,
    gain: FloatTensor<B>,
    floor: FloatTensor<B>,
) -> FloatTensor<B> {
    let (shape, dtype) = (gain.shape(), gain.dtype());
    let product = B::float_mul(cast::<B>(l, dtype), cast::<B>(dy, dtype));
    let sums = B::float_reshape(B::float_sum_dim(product, 0), shape);
    B::float_mask_fill(sums, at_floor::<B>(gain, &floor), 0.0.into())
}

/// Where `gain <= floor`. NaN is above its floor, so that it stays visible in the result.
fn at_floor<B: Backend>(gain: FloatTensor<B>, floor: &FloatTensor<B>) -> BoolTensor<B> {
    let dtype = get_or_init_device_settings::<B>(&gain.device()).bool_dtype;
    B::float_lower_equal(gain, floor.clone(), dtype)
}
