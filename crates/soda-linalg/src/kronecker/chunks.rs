//! How an array in host memory is cut into chunks, for the caches of a CPU and for its threads.

#![cfg_attr(
    not(any(feature = "flex", feature = "cube")),
    allow(dead_code, reason = "without a listed backend burn differentiates the forward pass")
)]

use burn::tensor::Tensor;

use crate::backend::is_in_host_memory;

/// The number of entries from which an array is cut.
const MIN_ENTRIES: usize = 1 << 20;
/// The number of entries of a chunk. A few chunks fit into a core's second-level cache. The products on one
/// chunk are too small for the backend to use several cores, so that the chunks are spread over the cores.
const CHUNK_ENTRIES: usize = 1 << 15;
/// The least number of columns of a chunk, below which matrix products are slow.
const MIN_COLUMNS: usize = 64;

/// The axis along which to cut `[before, width, after]` for the cache, and the length of a chunk.
pub(super) fn chunk_for_cache(x: &Tensor<3>) -> Option<(usize, usize)> {
    let dims @ [before, _, after] = x.dims();
    let (axis, least) = if before >= after { (0, 1) } else { (2, MIN_COLUMNS) };
    let entries: usize = dims.iter().product();
    let length = (CHUNK_ENTRIES / (entries / dims[axis].max(1)).max(1)).max(least);
    let is_worthwhile = entries >= MIN_ENTRIES && length < dims[axis];
    (is_worthwhile && is_in_host_memory(x)).then_some((axis, length))
}

/// The axis and the length of a chunk for tasks on several threads, if the rows of `x` are worth the tasks.
///
/// The length does not depend on the number of threads: gradients are sums over the chunks, and would have
/// other bits on another machine.
pub(super) fn chunk_for_threads(x: &Tensor<3>) -> Option<(usize, usize)> {
    let [before, width, after] = x.dims();
    let length = (CHUNK_ENTRIES / width.max(1)).max(1);
    let is_worthwhile = after == 1 && length < before;
    (is_worthwhile && is_in_host_memory(x)).then_some((0, length))
}
