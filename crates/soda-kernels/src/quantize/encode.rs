//! Quantization on the host, so that every device has the same codes.

use std::num::NonZero;

use super::format::QuantFormat;
use super::layout::QuantLayout;

/// A quantized matrix on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedMatrix {
    layout: QuantLayout,
    words: Vec<u32>,
    scales: Vec<f32>,
}

impl QuantizedMatrix {
    /// Quantizes `values`, a matrix in row-major order.
    ///
    /// The values are finite: a block with another value gets a scale that is not.
    ///
    /// # Panics
    /// If `values` does not have the length of the layout.
    pub fn encode(values: &[f32], layout: QuantLayout) -> Self {
        assert_eq!(values.len(), layout.numbers(), "a value for each number of the layout");
        let (format, block) = (layout.format(), layout.block());
        let mut peaks = vec![0.0; layout.blocks()];
        in_parallel(&mut peaks, 1, block, |first, peaks| {
            let blocks = values[first * block..].chunks_exact(block);
            for (peak, block) in peaks.iter_mut().zip(blocks) {
                *peak = largest_magnitude(block) / format.largest();
            }
        });
        let (scale_codes, scales) = if layout.is_nested() {
            nested(&peaks, layout.blocks_per_scale())
        } else {
            (Vec::new(), peaks)
        };
        let scale = |block: usize| match scale_codes.get(block) {
            Some(code) => f32::from(*code) * scales[block / layout.blocks_per_scale()],
            None => scales[block],
        };
        let mut words = vec![0; layout.words()];
        let (codes, nested_words) = words.split_at_mut(layout.code_words());
        let words_per_block = block / layout.codes_per_word();
        in_parallel(codes, words_per_block, block, |first, words| {
            let blocks = values[first * block..].chunks_exact(block);
            for (index, (words, block)) in
                words.chunks_exact_mut(words_per_block).zip(blocks).enumerate()
            {
                let scale = scale(first + index);
                let inverse = inverse(scale);
                pack(format, block, inverse, words);
            }
        });
        for (index, code) in scale_codes.iter().enumerate() {
            nested_words[index / 4] |= u32::from(*code) << (8 * (index % 4));
        }
        Self { layout, words, scales }
    }

    /// The layout.
    pub fn layout(&self) -> QuantLayout {
        self.layout
    }

    /// The words, as [`QuantLayout`] describes them, in little-endian order.
    pub(crate) fn word_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// The scales in float32.
    pub(crate) fn scales(&self) -> &[f32] {
        &self.scales
    }
}

/// The numbers for which another thread pays.
const NUMBERS_OF_A_THREAD: usize = 1 << 20;

/// Calls `f` with parts of `results`, which has `each` for every block of `block` numbers, and the
/// index of the first block of each part.
fn in_parallel<T: Send>(
    results: &mut [T],
    each: usize,
    block: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let blocks = results.len() / each;
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = (blocks * block / NUMBERS_OF_A_THREAD).clamp(1, processors);
    let blocks_each = blocks.div_ceil(threads).max(1);
    if threads == 1 {
        return f(0, results);
    }
    std::thread::scope(|scope| {
        for (index, part) in results.chunks_mut(blocks_each * each).enumerate() {
            let f = &f;
            scope.spawn(move || f(index * blocks_each, part));
        }
    });
}

/// The largest magnitude of numbers; NaN if one of them is. The bits of positive floats are in their order,
/// and those of NaN above all.
fn largest_magnitude(values: &[f32]) -> f32 {
    let magnitude = |x: &f32| x.abs().to_bits();
    f32::from_bits(values.iter().map(magnitude).fold(0, u32::max))
}

/// The inverse of a scale; 0 for one that is too small to have a finite inverse.
fn inverse(scale: f32) -> f32 {
    if scale < f32::MIN_POSITIVE { 0.0 } else { 1.0 / scale }
}

/// The larger of two numbers; NaN if one of them is.
fn maximum(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

/// Codes of 8 bits for the scales of blocks, and a scale for every `share` of them.
fn nested(peaks: &[f32], share: usize) -> (Vec<u8>, Vec<f32>) {
    let scales: Vec<f32> = peaks
        .chunks(share)
        .map(|peaks| peaks.iter().fold(0.0f32, |peak, x| maximum(peak, *x)) / 255.0)
        .collect();
    let code = |(index, peak): (usize, &f32)| {
        let scale = scales[index / share];
        let code = if scale == 0.0 { 0.0 } else { peak / scale };
        code.round_ties_even().clamp(0.0, 255.0) as u8
    };
    (peaks.iter().enumerate().map(code).collect(), scales)
}

/// Writes the codes of `values * inverse`.
#[inline]
fn pack(format: QuantFormat, values: &[f32], inverse: f32, words: &mut [u32]) {
    let bits = format.bits();
    for (word, values) in words.iter_mut().zip(values.chunks_exact(32 / bits)) {
        let code =
            |(index, x): (usize, &f32)| u32::from(format.code(x * inverse)) << (bits * index);
        *word = values.iter().enumerate().map(code).fold(0, |word, code| word | code);
    }
}
