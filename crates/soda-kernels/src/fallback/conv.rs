//! The gradient of a convolution by its input.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};

/// `KernelGradients::conv2d_input_gradient` as a transposed convolution, which is the fastest way on a CPU.
pub(crate) fn transposed<B: Backend>(
    dy: FloatTensor<B>,
    weight: FloatTensor<B>,
    size: [usize; 2],
    options: ConvOptions<2>,
) -> FloatTensor<B> {
    let ([_, _, kh, kw], [_, _, h, w]) = (weight.shape().dims(), dy.shape().dims());
    let padding = options.padding_begin();
    // Rows and columns at the far edge that no window reached get a zero gradient, but they are part of the
    // result.
    let unreached = |axis: usize, full: usize, out: usize, kernel: usize| {
        full + 2 * padding[axis] - ((out - 1) * options.stride[axis] + kernel)
    };
    let out_padding = [unreached(0, size[0], h, kh), unreached(1, size[1], w, kw)];
    let options = ConvTransposeOptions::new(options.stride, padding, out_padding, [1, 1], 1);
    B::conv_transpose2d(dy, weight, None, options)
}
