//! What a device's memory is taken up by.

use burn::tensor::{Device, Tensor};

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// What tensors hold.
    pub in_use: u64,
    /// What the backend's pools have taken from the device for them.
    pub reserved: u64,
    /// What products and convolutions of a vendor's library work in, outside of the pools.
    pub workspace: u64,
}

/// What is taken of `device`; `None` where the backend does not say.
pub fn memory_usage(device: &Device) -> Option<MemoryUsage> {
    let usage = device.memory_pool_usage()?;
    #[cfg(feature = "cuda")]
    let workspace = crate::cuda::scratch();
    #[cfg(not(feature = "cuda"))]
    let workspace = 0;
    Some(MemoryUsage { in_use: usage.bytes_in_use, reserved: usage.bytes_reserved, workspace })
}

/// What `make` gives, in memory of exactly its size that no other tensor is cut from: for what lives as long as a network does.
///
/// A pool cuts tensors from pages as large as the largest tensor it has seen. Weights among those keep every page that they lie
/// on, and pages of a size that was outgrown are filled no more.
pub fn persistent<const D: usize>(
    x: Tensor<D>,
    make: impl Fn(Tensor<D>) -> Tensor<D> + Send,
) -> Tensor<D> {
    x.device().memory_persistent_allocations(x, make)
}
