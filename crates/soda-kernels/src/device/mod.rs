//! What concerns the device rather than a formula: memory, memory format, graph capture, vendor libraries,
//! kernel cache.

pub(crate) mod checksum;
pub(crate) mod collective;
pub(crate) mod copies_ahead;
pub(crate) mod graph;
#[cfg(feature = "persistence")]
pub(crate) mod kernel_cache;
pub(crate) mod lazy_graph;
pub(crate) mod memory;
pub(crate) mod memory_format;
pub(crate) mod vendor_blas;
