//! Small calls of the CUDA driver.

use cudarc::driver::sys;

/// An error message that names the call which failed.
pub(super) fn driver_error<E: std::fmt::Debug>(call: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{call}: {error:?}")
}

/// Whether `stream` is being captured. A stream in capture executes nothing, and events of it cannot be
/// awaited.
#[allow(unsafe_code, reason = "a call of the CUDA driver")]
pub(super) fn is_capturing(stream: sys::CUstream) -> bool {
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the backend's streams live as long as the process.
    let found = unsafe { sys::cuStreamIsCapturing(stream, &mut status) };
    found.result().is_ok() && status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE
}
