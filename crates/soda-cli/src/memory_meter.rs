//! The memory of a device, or of this process on a CPU.

use burn::tensor::Device;
use soda_kernels::{free_memory, memory_usage, release_unused};
use soda_train::MemoryMeter;

use crate::device::is_processor;

/// Measures the memory pools of a GPU, or the resident memory of this process.
pub(crate) struct DeviceMemory(Device);

impl DeviceMemory {
    pub(crate) fn of(device: &Device) -> Self {
        Self(device.clone())
    }
}

impl MemoryMeter for DeviceMemory {
    fn restart(&mut self) {
        if is_processor(&self.0) {
            // Linux then measures the peak anew. Where it does not, the peak is that of the whole process.
            let _ = std::fs::write("/proc/self/clear_refs", "5");
        } else {
            release_unused(&self.0);
        }
    }

    fn room(&mut self) -> Option<u64> {
        // What an allocator keeps for each thread of a CPU does not grow with the pictures.
        let free = if is_processor(&self.0) { None } else { free_memory(&self.0) }?;
        Some(free + self.peak()?)
    }

    fn peak(&mut self) -> Option<u64> {
        if is_processor(&self.0) {
            return peak_of_process("self");
        }
        let usage = memory_usage(&self.0)?;
        Some(usage.reserved + usage.workspace)
    }
}

/// The most resident memory of the process with this number, or of `self`, in bytes. `None` unless the system
/// is Linux.
pub(crate) fn peak_of_process(process: &str) -> Option<u64> {
    kib(&format!("/proc/{process}/status"), "VmHWM:")?.checked_mul(1024)
}

/// A size in a file of the kernel of Linux, in KiB.
pub(crate) fn kib(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_meter_sees_what_the_process_takes() {
        let mut meter = DeviceMemory::of(&Device::flex());
        meter.restart();
        let before = meter.peak().unwrap_or_default();
        let taken = vec![1u8; 64 << 20];
        assert!(taken.iter().all(|byte| *byte == 1));
        let peak = meter.peak().unwrap_or_default();
        assert!(before > 0 && peak >= before + (60 << 20), "{before} {peak}");
    }
}
