//! A second stream, on which matrices in host memory are copied while the backend's stream computes.
//!
//! ```text
//! backend's stream   ...free memory | product i-1 | wait | product i | wait | product i+1
//! copy stream                       | copy i             | copy i+1
//! ```
//!
//! A copy begins after what the backend's stream has been given before it, since the memory may belong to
//! that work. In a captured graph the two streams are branches that meet at each wait.

use cudarc::driver::{result, sys};

use super::driver::driver_error;

/// The copies that may be begun and not awaited.
pub(super) const COPIES: usize = 16;

/// The stream and its events. They live as long as the process.
pub(super) struct CopyStream {
    stream: sys::CUstream,
    /// The backend's stream has done its earlier work.
    begin: sys::CUevent,
    /// The copy of this number is done.
    done: [sys::CUevent; COPIES],
}

#[allow(unsafe_code, reason = "calls of the CUDA driver")]
impl CopyStream {
    pub(super) fn new() -> Result<Self, String> {
        let event = || {
            let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
            result::event::create(flags).map_err(driver_error("cuEventCreate"))
        };
        let mut done = [std::ptr::null_mut(); COPIES];
        for slot in &mut done {
            *slot = event()?;
        }
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(driver_error("cuStreamCreate"))?;
        Ok(Self { stream, begin: event()?, done })
    }

    /// Begins to copy `bytes` to `address` after the earlier work of the stream `main`.
    ///
    /// The caller keeps the bytes allocated until [`wait`](Self::wait), and a captured graph until its last
    /// launch.
    pub(super) fn begin(
        &self,
        main: sys::CUstream,
        (number, address): (usize, sys::CUdeviceptr),
        bytes: &[u8],
    ) -> Result<(), String> {
        record(self.begin, main)?;
        wait(self.stream, self.begin)?;
        copy(self.stream, address, bytes)?;
        record(self.done[number % COPIES], self.stream)
    }

    /// Lets the later work of the stream `main` wait for a copy.
    pub(super) fn wait(&self, main: sys::CUstream, number: usize) -> Result<(), String> {
        wait(main, self.done[number % COPIES])
    }
}

/// Copies `bytes` to `address` in the order of `stream`.
#[allow(unsafe_code, reason = "a call of the CUDA driver")]
pub(super) fn copy(
    stream: sys::CUstream,
    address: sys::CUdeviceptr,
    bytes: &[u8],
) -> Result<(), String> {
    // SAFETY: the caller's tensor has this many bytes, and the caller keeps both sides allocated.
    unsafe { result::memcpy_htod_async(address, bytes, stream) }
        .map_err(driver_error("cuMemcpyHtoDAsync"))
}

#[allow(unsafe_code, reason = "a call of the CUDA driver")]
fn record(event: sys::CUevent, stream: sys::CUstream) -> Result<(), String> {
    // SAFETY: stream and event live as long as the process.
    unsafe { result::event::record(event, stream) }.map_err(driver_error("cuEventRecord"))
}

#[allow(unsafe_code, reason = "a call of the CUDA driver")]
fn wait(stream: sys::CUstream, event: sys::CUevent) -> Result<(), String> {
    let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
    // SAFETY: stream and event live as long as the process.
    unsafe { result::stream::wait_event(stream, event, flags) }
        .map_err(driver_error("cuStreamWaitEvent"))
}
