//! Quantization on the host, so that every device has the same codes.

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
        let format = layout.format();
        let peak = |block: &[f32]| block.iter().fold(0.0f32, |peak, x| maximum(peak, x.abs()));
        let peaks: Vec<f32> = values
            .chunks_exact(layout.block())
            .map(|block| peak(block) / format.largest())
            .collect();
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
        let words_per_block = layout.block() / layout.codes_per_word();
        let blocks =
            values.chunks_exact(layout.block()).zip(codes.chunks_exact_mut(words_per_block));
        for (block, (values, words)) in blocks.enumerate() {
            let scale = scale(block);
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            pack(format, values, inverse, words);
        }
        for (index, code) in scale_codes.iter().enumerate() {
            nested_words[index / 4] |= u32::from(*code) << (8 * (index % 4));
        }
        Self { layout, words, scales }
    }

    /// The layout.
    pub fn layout(&self) -> QuantLayout {
        self.layout
    }

    /// The words, as [`QuantLayout`] describes them.
    pub(crate) fn words(&self) -> &[u32] {
        &self.words
    }

    /// The scales in float32.
    pub(crate) fn scales(&self) -> &[f32] {
        &self.scales
    }
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
fn pack(format: QuantFormat, values: &[f32], inverse: f32, words: &mut [u32]) {
    let bits = format.bits();
    for (word, values) in words.iter_mut().zip(values.chunks_exact(32 / bits)) {
        let code =
            |(index, x): (usize, &f32)| u32::from(format.code(x * inverse)) << (bits * index);
        *word = values.iter().enumerate().map(code).fold(0, |word, code| word | code);
    }
}
