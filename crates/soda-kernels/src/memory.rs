//! What a device's memory is taken up by.

use burn::tensor::{Device, Tensor};

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What tensors hold.
    pub in_use: u64,
    /// What the backend's pools have taken from the device for them.
    pub reserved: u64,
    /// What products and convolutions of a vendor's library work in, outside of the pools.
    pub scratch: u64,
}

/// What is taken of `device`; `None` where the backend does not say.
pub fn memory(device: &Device) -> Option<Memory> {
    let usage = device.memory_pool_usage()?;
    #[cfg(all(feature = "cuda", not(feature = "fusion")))]
    let scratch = crate::cuda::scratch();
    #[cfg(not(all(feature = "cuda", not(feature = "fusion"))))]
    let scratch = 0;
    Some(Memory { in_use: usage.bytes_in_use, reserved: usage.bytes_reserved, scratch })
}

/// What `make` gives, in memory of exactly its size that no other tensor is cut from: for what lives as long as a network does.
///
/// A pool cuts tensors from pages as large as the largest tensor it has seen. Weights among those keep every page that they lie
/// on, and pages of a size that was outgrown are filled no more.
pub fn lasting<const D: usize>(
    x: Tensor<D>,
    make: impl Fn(Tensor<D>) -> Tensor<D> + Send,
) -> Tensor<D> {
    x.device().memory_persistent_allocations(x, make)
}
