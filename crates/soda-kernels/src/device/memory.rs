//! Memory usage of a device, and allocations apart from its pools.

use burn::tensor::{Device, Tensor};

use crate::cuda;

/// The memory usage of a device in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// Bytes that tensors occupy.
    pub in_use: u64,
    /// Bytes that the backend's pools have reserved on the device.
    pub reserved: u64,
    /// Bytes of workspace that a vendor's libraries use, outside the pools.
    pub workspace: u64,
}

/// Returns the memory usage of `device`, or `None` if the backend does not report it.
pub fn memory_usage(device: &Device) -> Option<MemoryUsage> {
    let usage = device.memory_pool_usage()?;
    Some(MemoryUsage {
        in_use: usage.bytes_in_use,
        reserved: usage.bytes_reserved,
        workspace: cuda::workspace_bytes(),
    })
}

/// Returns the bytes of the memory of `device` that no program has allocated, or `None` if the backend does
/// not report them. The pools may hold memory beside it that no tensor uses.
pub fn free_memory(device: &Device) -> Option<u64> {
    cuda::free_bytes(&Tensor::zeros([1], &device.clone().inner()))
}

/// Gives memory that the pools of `device` hold and no tensor uses back to the device. Waits for the device.
///
/// Between two stages of a program whose tensors differ in size. The pools of the first would stay reserved
/// beside those of the second.
pub fn release_unused(device: &Device) {
    // A device that does not run is an error of whoever reads a result next.
    let _ = device.sync();
    device.memory_cleanup();
}

/// Evaluates `make(x)` with persistent allocations, for tensors that live as long as a network does.
///
/// A persistent allocation has exactly the size of its tensor and shares no pool page. A pool cuts tensors
/// from pages as large as the largest tensor it has seen, so weights among short-lived tensors would keep
/// their pages allocated.
pub fn persistent<const D: usize>(
    x: Tensor<D>,
    make: impl Fn(Tensor<D>) -> Tensor<D> + Send,
) -> Tensor<D> {
    x.device().memory_persistent_allocations(x, make)
}

/// Copies `x` into memory that no other tensor shares.
pub fn deep_copy<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    // While the clone lives, burn cannot write the product over its factor.
    let shared = x.clone();
    let copy = x.mul_scalar(1);
    drop(shared);
    copy
}
