//! The gradient of a concatenation of channels.

use std::ops::Range;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::Slice;

/// `KernelGradients::split_channels`.
pub(crate) fn split_channels<B: Backend>(
    dy: FloatTensor<B>,
    channels: usize,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let all = dy.shape()[1];
    let part =
        |range: Range<usize>| B::float_slice(dy.clone(), &[Slice::full(), Slice::from(range)]);
    (part(0..channels), part(channels..all))
}
