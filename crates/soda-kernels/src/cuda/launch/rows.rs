//! The grid of the row kernels, which hold a row in the registers of a block or a warp.

use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;

/// The number of elements of a row that one thread holds.
const HELD: usize = 16;
/// The number of rows of a block if each warp has a row.
pub(super) const WARPS: usize = 4;

/// The rows of a tensor and the threads for one of them.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) count: usize,
    pub(super) length: usize,
    pub(super) threads: usize,
}

impl Rows {
    pub(super) fn of(x: &CubeTensor) -> Self {
        let shape = x.shape();
        let length = shape[shape.num_dims() - 1];
        let threads = length.div_ceil(HELD).next_power_of_two().clamp(128, 1024);
        // A short row needs no more than a warp.
        let threads = if length <= 32 * 4 { 32 } else { threads };
        Self { count: shape.num_elements() / length.max(1), length, threads }
    }
}

/// Whether a warp can hold a row: packs of 16 bytes, at most five a lane. `addresses` is the bitwise or of
/// all addresses.
pub(super) fn fits_a_warp(length: usize, width: usize, addresses: u64) -> bool {
    let bytes = length * width;
    bytes.is_multiple_of(16) && bytes <= 5 * 32 * 16 && addresses.is_multiple_of(16)
}
