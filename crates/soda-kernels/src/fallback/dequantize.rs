//! Numbers of quantized matrices, in burn's operations on integers, and products with them.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{FloatDType, Shape, TensorData};

use super::steps::ForwardSteps;
use super::{fp8, transposed};
use crate::quantize::{ActivationFormat, QuantLayout};

/// `Kernels::linear_quantized`.
pub(crate) fn product<B: ForwardSteps>(
    x: FloatTensor<B>,
    words: IntTensor<B>,
    scales: FloatTensor<B>,
    layout: QuantLayout,
) -> FloatTensor<B> {
    match layout.activations() {
        ActivationFormat::Float => {
            let w = B::dequantized(words, scales, layout, x.dtype().into());
            B::product(x, transposed::<B>(w))
        }
        ActivationFormat::Fp8 => fp8::product::<B>(x, words, scales, layout),
    }
}

/// `KernelGradients::linear_quantized_gradient`.
pub(crate) fn gradient<B: ForwardSteps>(
    dy: FloatTensor<B>,
    words: IntTensor<B>,
    scales: FloatTensor<B>,
    layout: QuantLayout,
) -> FloatTensor<B> {
    match layout.activations() {
        ActivationFormat::Float => {
            let w = B::dequantized(words, scales, layout, dy.dtype().into());
            B::product(dy, w)
        }
        ActivationFormat::Fp8 => fp8::gradient::<B>(dy, words, scales, layout),
    }
}

/// The matrix `[rows, columns]` in `dtype`.
pub(crate) fn dequantize<B: Backend>(
    words: IntTensor<B>,
    scales: FloatTensor<B>,
    layout: QuantLayout,
    dtype: FloatDType,
) -> FloatTensor<B> {
    let (device, [rows, columns]) = (words.device(), layout.shape());
    let part = |from: usize, to: usize| B::int_slice(words.clone(), &[(from..to).into()]);
    let codes = codes::<B>(part(0, layout.code_words()), layout.format().bits());
    let table = B::float_from_data(TensorData::from(layout.format().table().as_slice()), &device);
    let values = B::float_select(table, 0, codes);
    let (blocks, share) = (layout.blocks(), layout.blocks_per_scale());
    let scales = if layout.is_nested() {
        let codes = codes_of_scales::<B>(part(layout.code_words(), layout.words()), blocks);
        B::float_mul(codes, repeated::<B>(scales, share, blocks))
    } else {
        scales
    };
    let scales = repeated::<B>(scales, layout.block(), layout.numbers());
    let matrix = B::float_reshape(B::float_mul(values, scales), Shape::new([rows, columns]));
    if matrix.dtype() == dtype.into() { matrix } else { B::float_cast(matrix, dtype) }
}

/// The codes of `bits` bits in words, the first in the lowest bits.
fn codes<B: Backend>(words: IntTensor<B>, bits: usize) -> IntTensor<B> {
    let count = words.shape().num_elements();
    let code = |index: usize| {
        let shifted = B::bitwise_right_shift_scalar(words.clone(), ((index * bits) as i32).into());
        let code = B::bitwise_and_scalar(shifted, ((1 << bits) - 1).into());
        B::int_reshape(code, Shape::new([count, 1]))
    };
    let per_word = 32 / bits;
    let codes = B::int_cat((0..per_word).map(code).collect(), 1);
    B::int_reshape(codes, Shape::new([count * per_word]))
}

/// The scales of 8 bits of `blocks` blocks.
fn codes_of_scales<B: Backend>(words: IntTensor<B>, blocks: usize) -> FloatTensor<B> {
    let codes = B::int_slice(codes::<B>(words, 8), &[(0..blocks).into()]);
    B::int_into_float(codes, FloatDType::F32)
}

/// Repeats every element of a vector `times` times, up to the length `total`.
fn repeated<B: Backend>(x: FloatTensor<B>, times: usize, total: usize) -> FloatTensor<B> {
    let count = x.shape().num_elements();
    let x =
        B::float_expand(B::float_reshape(x, Shape::new([count, 1])), Shape::new([count, times]));
    let x = B::float_reshape(x, Shape::new([count * times]));
    if count * times == total { x } else { B::float_slice(x, &[(0..total).into()]) }
}
