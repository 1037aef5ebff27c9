//! Convolutions and their gradients by the input: Winograd's filtering where it pays, im2col elsewhere.

use burn::backend::TensorMetadata;
use burn::tensor::ops::ConvOptions;

use super::conv_geometry::Sizes;
use super::im2col;
use super::tensor::FlexTensor;
use super::winograd::{self, Direction};

/// The convolution of `x` `[b, c, h, w]` with `weight` `[o, c, kh, kw]`.
pub(super) fn forward(x: &FlexTensor, weight: &FlexTensor, options: &ConvOptions<2>) -> FlexTensor {
    let ([batch, c, h, w], [outs, _, kh, kw]) = (x.shape().dims(), weight.shape().dims());
    let sizes = Sizes::new([c, h, w], [kh, kw], options);
    if winograd::suits(&sizes, batch, outs) {
        return winograd::convolve(x, weight, &sizes, Direction::Forward);
    }
    im2col::forward(x, weight, &sizes)
}

/// The gradient of [`forward`] by its input of `height` and `width`, from the gradient `dy` of its value.
pub(super) fn input_gradient(
    dy: &FlexTensor,
    weight: &FlexTensor,
    [height, width]: [usize; 2],
    options: &ConvOptions<2>,
) -> FlexTensor {
    let ([batch, _, h, w], [outs, c, kh, kw]) = (dy.shape().dims(), weight.shape().dims());
    let padding = options.padding_begin();
    if options.stride == [1, 1] && padding[0] < kh && padding[1] < kw {
        let adjoint =
            ConvOptions::new([1, 1], [kh - 1 - padding[0], kw - 1 - padding[1]], [1, 1], 1);
        let sizes = Sizes::new([outs, h, w], [kh, kw], &adjoint);
        if winograd::suits(&sizes, batch, c) {
            return winograd::convolve(dy, weight, &sizes, Direction::Adjoint);
        }
    }
    im2col::input_gradient(dy, weight, &Sizes::new([c, height, width], [kh, kw], options))
}
