//! Numbers of quantized matrices, row by row on the threads of the pool.

use burn::backend::Flex;
use burn::backend::tensor::IntTensor;

use super::parallel::{for_each_task, rows_per_task};
use super::simd::vectorized;
use super::tensor::{FlexTensor, from_values, values};
use crate::quantize::{QuantFormat, QuantLayout};

/// The matrix `[rows, columns]` in float32.
pub(super) fn dequantize(
    words: &IntTensor<Flex>,
    scales: &FlexTensor,
    layout: QuantLayout,
) -> FlexTensor {
    let (words, scales) = (words.to_contiguous(), scales.to_contiguous());
    let (words, scales) = (words.storage::<i32>(), values(&scales));
    let (codes, nested) = words.split_at(layout.code_words());
    let scale = |block: usize| {
        let scale = scales[block / layout.blocks_per_scale()];
        if layout.is_nested() { scale * byte(nested[block / 4], block % 4) } else { scale }
    };
    let ([rows, columns], block) = (layout.shape(), layout.block());
    let mut matrix = vec![0.0; layout.numbers()];
    let rows_each = rows_per_task(rows, columns);
    let tasks: Vec<_> = matrix.chunks_mut(rows_each * columns).enumerate().collect();
    let table = layout.format().table();
    let words_per_block = block / layout.codes_per_word();
    for_each_task(tasks, layout.numbers(), |(task, part)| {
        let first = task * rows_each * columns / block;
        for (index, y) in part.chunks_exact_mut(block).enumerate() {
            let block = first + index;
            let words = &codes[block * words_per_block..][..words_per_block];
            vectorized(
                #[inline(always)]
                || write_block(layout.format(), &table, words, scale(block), y),
            );
        }
    });
    from_values(matrix, [rows, columns])
}

/// Byte `index` of a word as a number.
fn byte(word: i32, index: usize) -> f32 {
    f32::from((word >> (8 * index)) as u8)
}

/// Writes the numbers of one block.
#[inline(always)]
fn write_block(format: QuantFormat, table: &[f32], words: &[i32], scale: f32, y: &mut [f32]) {
    let mask = (1 << format.bits()) - 1;
    for (word, y) in words.iter().zip(y.chunks_exact_mut(32 / format.bits())) {
        for (index, y) in y.iter_mut().enumerate() {
            let code = word >> (format.bits() * index) & mask;
            let value = match format {
                // The table without reading it.
                QuantFormat::Int8 => f32::from(code as u8 as i8),
                QuantFormat::Fp8 | QuantFormat::Nf4 => table[code as usize],
            };
            *y = value * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::ops::{FloatTensorOps, IntTensorOps};
    use burn::tensor::{DType, FloatDType, TensorData};

    use super::*;
    use crate::fallback;
    use crate::quantize::QuantizedMatrix;

    /// Backends without a kernel unpack by burn's operations. They get the bits of the kernels.
    #[test]
    fn operations_of_burn_unpack_the_same_numbers() {
        let device = <Flex as burn::backend::BackendTypes>::Device::default();
        for (format, shape) in [
            (QuantFormat::Int8, [5, 72]),
            (QuantFormat::Fp8, [3, 40]),
            (QuantFormat::Nf4, [7, 192]),
        ] {
            let Some(layout) = QuantLayout::new(format, shape) else { panic!("{shape:?}") };
            // Negative words too: the highest bits of a code are those of the sign.
            let values: Vec<f32> =
                (0..layout.numbers()).map(|index| (index as f32 * 0.7).sin() * 3.0).collect();
            let matrix = QuantizedMatrix::encode(&values, layout);
            let words = matrix.word_bytes();
            let words = TensorData::from_bytes_vec(words, [layout.words()], DType::I32);
            let words = Flex::int_from_data(words, &device);
            let scales = Flex::float_from_data(TensorData::from(matrix.scales()), &device);
            let expected = dequantize(&words, &scales, layout);
            let found =
                fallback::dequantize::dequantize::<Flex>(words, scales, layout, FloatDType::F32);
            assert_eq!(
                super::values(&found.to_contiguous()),
                super::values(&expected),
                "{format:?}"
            );
            let largest = super::values(&expected).iter().zip(&values).map(|(a, b)| (a - b).abs());
            assert!(largest.into_iter().all(|off| off < 0.5), "{format:?}");
        }
    }
}
