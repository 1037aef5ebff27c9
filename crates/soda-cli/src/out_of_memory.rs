//! A GPU whose memory is full: one sentence instead of a panic.
//!
//! burn computes on a GPU while the program goes on. An allocation that fails there becomes a panic where a
//! result is read.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};

use anyhow::Result;

/// What CubeCL, the driver and the libraries write about memory that they do not get.
const SIGNS: &[&str] = &[
    "out of device memory",
    "out-of-memory",
    "OUT_OF_MEMORY",
    "can't allocate buffer of size",
    "STATUS_ALLOC_FAILED",
    // CubeCL names a call of the driver and the number of CUDA_ERROR_OUT_OF_MEMORY.
    "failed with status 2\n",
    "failed with status 2\\n",
];

/// The device has no memory for a tensor. Displays as one sentence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutOfDeviceMemory {
    /// The bytes that were asked for, if the backend says so.
    bytes: Option<u64>,
}

impl OutOfDeviceMemory {
    /// Reads the message of a panic.
    fn from_message(message: &str) -> Option<Self> {
        SIGNS.iter().find(|sign| message.contains(**sign))?;
        let number = ["allocating ", "buffer of size: "].iter().find_map(|before| {
            let (_, rest) = message.split_once(before)?;
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        });
        Some(Self { bytes: number })
    }
}

impl fmt::Display for OutOfDeviceMemory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the GPU's memory is full")?;
        match self.bytes {
            Some(bytes) => write!(formatter, ": no room for {} MiB more", bytes.div_ceil(1 << 20)),
            None => Ok(()),
        }
    }
}

impl std::error::Error for OutOfDeviceMemory {}

/// Runs a command. A panic for want of a device's memory is an error, and prints nothing.
///
/// # Errors
/// [`OutOfDeviceMemory`], or an error of the command.
pub(crate) fn catch_out_of_memory(command: impl FnOnce() -> Result<()>) -> Result<()> {
    let usual = take_hook();
    set_hook(Box::new(move |info| {
        if message_of(info.payload()).and_then(OutOfDeviceMemory::from_message).is_none() {
            usual(info);
        }
    }));
    // Nothing of the command is used after a panic.
    catch_unwind(AssertUnwindSafe(command)).unwrap_or_else(|panic| {
        match message_of(&*panic).and_then(OutOfDeviceMemory::from_message) {
            Some(error) => Err(error.into()),
            None => resume_unwind(panic),
        }
    })
}

fn message_of(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_full_devices_are_recognised() {
        let message = "Error while reading data: use `try_into_data`: Io(out of device memory allocating 3145729 bytes\nBACKTRACE)";
        let error = OutOfDeviceMemory::from_message(message).map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("the GPU's memory is full: no room for 4 MiB more"));
        let message = "the CUDA device failed: cuMemAlloc: DriverError(CUDA_ERROR_OUT_OF_MEMORY)";
        assert_eq!(
            OutOfDeviceMemory::from_message(message),
            Some(OutOfDeviceMemory { bytes: None })
        );
        let message = "bytes: host access failed: Read(Caused by:\n  cuStreamCreate failed with status 2\nBacktrace:)";
        assert!(OutOfDeviceMemory::from_message(message).is_some());
        assert_eq!(OutOfDeviceMemory::from_message("index out of bounds"), None);
    }

    #[test]
    fn a_full_device_is_an_error() {
        let full = catch_out_of_memory(|| panic!("out of device memory allocating 1 bytes"));
        assert!(full.is_err_and(|error| error.is::<OutOfDeviceMemory>()));
        assert!(catch_out_of_memory(|| Ok(())).is_ok());
    }
}
