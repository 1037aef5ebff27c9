//! Tasks of this crate between those of the backend, on the backend's streams.
//!
//! CubeCL runs a device on one thread and gives every thread that submits work a stream.
//!
//! [`submit`] sends a
//! task to the device's thread, where all earlier work is enqueued already. The task enqueues its calls on
//! the stream of the thread that submitted it. Nothing waits on the host.
//!
//! Tensors of other threads' streams are synchronized by events:
//!
//! ```text
//! their earlier work --> the task's calls --> their later work
//! ```

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};

use burn::backend::StreamId;
use burn_cubecl::cubecl::cuda::CudaRuntime;
use burn_cubecl::cubecl::device_handle::DeviceHandle;
use burn_cubecl::cubecl::server::{BufferBinding, ServerStorage};
use burn_cubecl::cubecl::{__private::Runtime, device::DeviceId};
use burn_cubecl::tensor::CubeTensor;
use cubecl_server::stream::{FailureStore as _, WriteScoped};
use cudarc::driver::{result, sys};

use super::copy_stream::CopyStream;
use super::driver::{driver_error, is_capturing};
use super::handles::Handles;
use super::module::Launcher;

type Server = <CudaRuntime as Runtime>::Server;

/// What a task works with; there is one context for each stream.
pub(super) struct StreamContext {
    pub(super) stream: sys::CUstream,
    pub(super) handles: Handles,
    pub(super) launcher: Launcher,
    event: sys::CUevent,
    copies: Option<CopyStream>,
}

thread_local! {
    /// The contexts of a device's thread, by the address of their stream.
    static CONTEXTS: RefCell<HashMap<usize, StreamContext>> = RefCell::default();
    static DEVICES: RefCell<HashMap<DeviceId, DeviceHandle<Server>>> = RefCell::default();
}

/// The first failure on a device's thread, which the next [`submit`] reports.
static FAILURE: Mutex<Option<String>> = Mutex::new(None);

/// Submits `task` with the addresses of `tensors`, in the order of the calling thread's stream. Returns at
/// once.
///
/// # Panics
/// As [`submit_all`].
pub(super) fn submit<const N: usize>(
    tensors: [&CubeTensor; N],
    task: impl FnOnce(&mut StreamContext, [u64; N]) -> Result<(), String> + Send + 'static,
) {
    submit_all(&tensors, move |context, addresses| {
        let addresses = addresses.try_into().map_err(driver_error("addresses"))?;
        task(context, addresses)
    });
}

/// [`submit`] with any number of tensors.
///
/// # Panics
/// If the driver or a library refused an earlier task, for want of memory for example. The results of that
/// task do not exist, so no later result means anything.
pub(super) fn submit_all(
    tensors: &[&CubeTensor],
    task: impl FnOnce(&mut StreamContext, &[u64]) -> Result<(), String> + Send + 'static,
) {
    if let Some(failure) = FAILURE.lock().unwrap_or_else(PoisonError::into_inner).clone() {
        panic!("the CUDA device failed: {failure}");
    }
    // Bindings, not handles: a handle counts as a user of the memory. While it waits for the device's thread,
    // the backend could not write in place.
    let bindings: Vec<BufferBinding> =
        tensors.iter().map(|tensor| tensor.handle.clone().binding()).collect();
    let Some(id) = bindings.first().map(|binding| binding.service.device) else { return };
    DEVICES.with_borrow_mut(|devices| {
        let device = devices.entry(id).or_insert_with(|| DeviceHandle::<Server>::new(id));
        device.submit(move |server| {
            if let Err(failure) = enqueue(server, bindings, task) {
                FAILURE.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
            }
        });
    });
}

/// Hands what this thread has submitted to the devices' threads, for a caller that waits for a task.
/// Otherwise tasks wait for the next read.
pub(super) fn flush() {
    DEVICES.with_borrow(|devices| devices.values().for_each(DeviceHandle::flush_queue));
}

/// Runs `task` on the device's thread.
fn enqueue(
    server: &mut Server,
    bindings: Vec<BufferBinding>,
    task: impl FnOnce(&mut StreamContext, &[u64]) -> Result<(), String>,
) -> Result<(), String> {
    // CubeCL sets the current stream to that of the submitting thread.
    let id = StreamId::current();
    let stream = stream_of(server, id).ok_or("the device's thread has no stream for a task")?;
    let homes = bindings.iter().filter_map(|binding| stream_of(server, binding.stream));
    let mut others: Vec<_> = homes.filter(|home| *home != stream).collect();
    others.sort_unstable();
    others.dedup();
    if let Some(capture) = server.capturing(id).filter(|capture| capture.is_recording()) {
        // A graph replays on these addresses, so it keeps their buffers allocated.
        for binding in &bindings {
            capture.touch(binding.stream, binding.memory.descriptor().location());
        }
        capture.record(bindings.clone());
        // The work of other streams was awaited before the capture began.
        others.clear();
    }
    // The resources are held until the calls are enqueued. Memory that is freed after that is reused in
    // stream order.
    let resources: Vec<_> =
        bindings.iter().map(|binding| server.get_resource(binding.clone(), id)).collect();
    let mut addresses = Vec::with_capacity(resources.len());
    for resource in &resources {
        match resource {
            Ok(resource) => addresses.push(resource.resource().ptr),
            // There was no memory, or an earlier kernel failed. The result of this task carries that error as
            // well, so that the backend reports it to whoever reads a result.
            Err(error) => {
                server.write_streams().taint(error.clone(), bindings.iter());
                return Ok(());
            }
        }
    }
    CONTEXTS.with_borrow_mut(|contexts| {
        let context = match contexts.entry(stream as usize) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(StreamContext::new(stream)?),
        };
        context.run_between(&others, |context| task(context, &addresses))
    })
}

/// The backend's stream for a thread.
fn stream_of(server: &mut Server, id: StreamId) -> Option<sys::CUstream> {
    server.write_streams().try_stream_mut(&id).map(|stream| stream.sys)
}

#[allow(unsafe_code, reason = "calls of the CUDA driver")]
impl StreamContext {
    fn new(stream: sys::CUstream) -> Result<Self, String> {
        // A workspace may be allocated while another stream is captured. The driver forbids that to a thread
        // unless the thread declares its calls independent of the capture.
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the call exchanges this thread's mode with `mode`.
        unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }
            .result()
            .map_err(driver_error("cuThreadExchangeStreamCaptureMode"))?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        Ok(Self {
            stream,
            event: result::event::create(flags).map_err(driver_error("cuEventCreate"))?,
            handles: Handles::new(stream),
            launcher: Launcher::new(stream),
            copies: None,
        })
    }

    /// The stream for copies from the host, created at its first use.
    pub(super) fn copy_stream(&mut self) -> Result<&CopyStream, String> {
        match &mut self.copies {
            Some(copies) => Ok(copies),
            none => Ok(none.insert(CopyStream::new()?)),
        }
    }

    /// Runs `task` after all earlier work of the `others`, and before all later work of them.
    fn run_between(
        &mut self,
        others: &[sys::CUstream],
        task: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let others: Vec<_> = others.iter().copied().filter(|other| !is_capturing(*other)).collect();
        let wait = |stream, event| {
            let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            // SAFETY: stream and event live as long as the process.
            unsafe { result::stream::wait_event(stream, event, flags) }
                .map_err(driver_error("cuStreamWaitEvent"))
        };
        let record = |event, stream| {
            // SAFETY: stream and event live as long as the process.
            unsafe { result::event::record(event, stream) }.map_err(driver_error("cuEventRecord"))
        };
        for other in &others {
            // A wait refers to the event's state at the time of the call, so one event serves all streams.
            record(self.event, *other)?;
            wait(self.stream, self.event)?;
        }
        task(self)?;
        if !others.is_empty() {
            record(self.event, self.stream)?;
        }
        others.into_iter().try_for_each(|other| wait(other, self.event))
    }
}
