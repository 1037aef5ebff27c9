//! Checksums of tensors (`checksum.cu`).

use burn::backend::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::cuda::stream;

/// The threads of a block.
const THREADS: usize = 256;
/// The most blocks of a launch: enough to keep the memory of every card busy.
const MOST_BLOCKS: usize = 2048;

/// Adds the terms of the checksum of `x` to the eight bytes of `sum`.
pub(crate) fn add_to(sum: &CubeTensor, x: CubeTensor) {
    let x = into_contiguous(x);
    let bytes = x.shape().num_elements() * x.dtype.size();
    let blocks = bytes.div_ceil(4 * THREADS).clamp(1, MOST_BLOCKS);
    stream::submit([&x, sum], move |context, [x, sum]| {
        let arguments = vec![x, bytes as u64, sum];
        context.launcher.launch(entry!("checksum"), [blocks, 1], THREADS, 0, arguments)
    });
}
