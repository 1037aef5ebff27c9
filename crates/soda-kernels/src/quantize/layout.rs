//! Where the codes and scales of a matrix are.

use std::fmt;

use super::format::{ActivationFormat, QuantFormat};

/// The codes of 8 bits in a word.
const BYTES: usize = 4;
/// The codes that tensor cores take at once.
const CODES_AT_ONCE: usize = 16;
/// The numbers of a row that a kernel writes at once.
const NUMBERS_AT_ONCE: usize = 8;

/// A matrix `[rows, columns]` in a format, and the format of what it is multiplied with. The numbers are in
/// row-major order.
///
/// Codes and scales of 8 bits are stored in words of 32 bits, the first in the lowest bits: the codes, then
/// the scales. The scales in float32 are apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct QuantLayout {
    format: QuantFormat,
    rows: usize,
    columns: usize,
    activations: ActivationFormat,
}

/// Written by hand, since a checkpoint holds a hash of it: what is a setting of the run is no part of the
/// base model.
impl fmt::Debug for QuantLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, rows, columns, activations: _ } = self;
        f.debug_struct("QuantLayout")
            .field("format", format)
            .field("rows", rows)
            .field("columns", columns)
            .finish()
    }
}

impl QuantLayout {
    /// The layout of a matrix `[rows, columns]`. `None` if there is no number, or if the columns are no
    /// multiple of the format's block, or of 8 where a row is a block.
    pub fn new(format: QuantFormat, [rows, columns]: [usize; 2]) -> Option<Self> {
        let multiple = format.block().unwrap_or(NUMBERS_AT_ONCE);
        let fits = rows > 0 && columns > 0 && columns.is_multiple_of(multiple);
        fits.then_some(Self { format, rows, columns, activations: ActivationFormat::Float })
    }

    /// The layout for products with activations in a format. They stay floats beside another format than
    /// [`QuantFormat::Fp8`], and if a side is no multiple of 16, which tensor cores take.
    pub fn with_activations(self, activations: ActivationFormat) -> Self {
        let [rows, columns] = self.shape().map(|side| side.is_multiple_of(CODES_AT_ONCE));
        let fits = self.format == QuantFormat::Fp8 && rows && columns;
        if fits { Self { activations, ..self } } else { self }
    }

    /// The format of activations and their gradients in products with the matrix.
    pub fn activations(&self) -> ActivationFormat {
        self.activations
    }

    /// The format.
    pub fn format(&self) -> QuantFormat {
        self.format
    }

    /// The shape `[rows, columns]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// The number of numbers.
    pub fn numbers(&self) -> usize {
        self.rows * self.columns
    }

    /// The numbers that share a scale.
    pub fn block(&self) -> usize {
        self.format.block().unwrap_or(self.columns)
    }

    /// The number of blocks.
    pub(crate) fn blocks(&self) -> usize {
        self.numbers() / self.block()
    }

    /// Whether the scales of blocks are integers of 8 bits with scales of their own.
    pub(crate) fn is_nested(&self) -> bool {
        self.format == QuantFormat::Nf4
    }

    /// The blocks that share a scale in float32: those of a row.
    pub(crate) fn blocks_per_scale(&self) -> usize {
        self.columns / self.block()
    }

    /// The number of scales in float32, one for each row.
    pub(crate) fn scales(&self) -> usize {
        self.rows
    }

    /// The codes in a word.
    pub(crate) fn codes_per_word(&self) -> usize {
        32 / self.format.bits()
    }

    /// The number of words that hold codes.
    pub(crate) fn code_words(&self) -> usize {
        self.numbers() / self.codes_per_word()
    }

    /// The number of words that hold codes and scales.
    pub(crate) fn words(&self) -> usize {
        let scales = if self.is_nested() { self.blocks().div_ceil(BYTES) } else { 0 };
        self.code_words() + scales
    }

    /// The bytes of the matrix.
    pub fn bytes(&self) -> usize {
        4 * (self.words() + self.scales())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_counts_codes_and_scales() {
        let layout = |format| QuantLayout::new(format, [3, 128]).expect("a multiple of 64");
        let sizes = |layout: QuantLayout| (layout.words(), layout.scales(), layout.bytes());
        assert_eq!(sizes(layout(QuantFormat::Int8)), (96, 3, 396));
        // 384 codes of 4 bits, 6 scales of 8 bits in 2 words, and a scale of these for each row.
        assert_eq!(sizes(layout(QuantFormat::Nf4)), (48 + 2, 3, 212));
        assert!(QuantLayout::new(QuantFormat::Int8, [3, 72]).is_some());
        // Hashes of older checkpoints have this text.
        let layout = layout(QuantFormat::Fp8).with_activations(ActivationFormat::Fp8);
        assert_eq!(format!("{layout:?}"), "QuantLayout { format: Fp8, rows: 3, columns: 128 }");
        assert_eq!(QuantLayout::new(QuantFormat::Int8, [3, 60]), None);
        assert_eq!(QuantLayout::new(QuantFormat::Nf4, [3, 72]), None);
        let activations = |format, shape| {
            let layout = QuantLayout::new(format, shape);
            layout.map(|layout| layout.with_activations(ActivationFormat::Fp8).activations())
        };
        assert_eq!(activations(QuantFormat::Fp8, [16, 64]), Some(ActivationFormat::Fp8));
        for (format, shape) in [
            (QuantFormat::Fp8, [8, 64]),
            (QuantFormat::Fp8, [16, 72]),
            (QuantFormat::Int8, [16, 64]),
        ] {
            assert_eq!(activations(format, shape), Some(ActivationFormat::Float));
        }
        assert_eq!(QuantLayout::new(QuantFormat::Int8, [0, 64]), None);
    }
}
