//! Nearest-neighbour upsampling by two, and its gradient.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};

use super::{at_least_f32, cast};

/// `Kernels::upsample_nearest`.
pub(crate) fn forward<B: Backend>(x: FloatTensor<B>, size: [usize; 2]) -> FloatTensor<B> {
    B::interpolate(x, size, InterpolateOptions::new(InterpolateMode::Nearest))
}

/// `KernelGradients::upsample_nearest_gradient`: sums of two rows, then of two columns.
pub(crate) fn gradient<B: Backend>(dy: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = dy.dtype();
    let [batch, channels, height, width] = dy.shape().dims();
    let [h, w] = [height, width].map(|size| size.div_ceil(2));
    let pairs = |x, axis, left: usize, right: usize| {
        let pairs = B::float_reshape(even::<B>(x, axis), [left, 2, right].into());
        B::float_sum_dim(pairs, 1)
    };
    let rows = pairs(at_least_f32::<B>(dy), 2, batch * channels * h, width);
    let rows = B::float_reshape(rows, [batch, channels, h, width].into());
    let sums = pairs(rows, 3, batch * channels * h * w, 1);
    cast::<B>(B::float_reshape(sums, [batch, channels, h, w].into()), dtype)
}

/// Appends zeros along `axis` if its length is odd.
fn even<B: Backend>(x: FloatTensor<B>, axis: usize) -> FloatTensor<B> {
    let mut shape = x.shape();
    if shape[axis].is_multiple_of(2) {
        return x;
    }
    shape[axis] = 1;
    let zeros = B::float_zeros(shape, &x.device(), x.dtype().into());
    B::float_cat(vec![x, zeros], axis)
}
