//! Grids and arguments that several launchers share.

/// The number of blocks of 256 threads for `n` elements. A thread of a larger tensor takes several.
pub(super) fn blocks(n: usize) -> usize {
    n.div_ceil(1024).clamp(1, 8192)
}

/// A float as a kernel's argument.
pub(super) fn float_argument(value: f32) -> u64 {
    value.to_bits().into()
}
