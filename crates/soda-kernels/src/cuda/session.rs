//! Work of our own between the backend's, on its own stream.
//!
//! CubeCL runs a device on one thread, and gives every thread that asks for work a stream. A task is sent to the
//! device's thread, where everything asked for before it has been enqueued, and enqueues its own calls on the stream
//! of who sent it. Nothing waits on the host.
//!
//! Tensors that live on other threads' streams put the task in order with those, by events:
//!
//! ```text
//! what they were asked so far --> our calls --> what they are asked from now on
//! ```

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, PoisonError};

use burn::backend::StreamId;
use burn_cubecl::cubecl::cuda::CudaRuntime;
use burn_cubecl::cubecl::device_handle::DeviceHandle;
use burn_cubecl::cubecl::server::{BufferBinding, ServerStorage};
use burn_cubecl::cubecl::{__private::Runtime, device::DeviceId};
use burn_cubecl::tensor::CubeTensor;
use cubecl_server::stream::WriteScoped;
use cudarc::driver::{result, sys};
use cudarc::{cublas, cublaslt, cudnn};

use super::images::{Image, kernels};
use super::{dnn, sums};

/// Shared memory that any kernel may have.
const PLAIN_SHARED: usize = 48 << 10;

type Server = <CudaRuntime as Runtime>::Server;

/// What a task works with, one for each stream. The libraries are opened in [`libraries`](super::libraries).
pub(super) struct Session {
    pub(super) stream: sys::CUstream,
    event: sys::CUevent,
    pub(super) blas: Option<cublas::sys::cublasHandle_t>,
    pub(super) lt: Option<cublaslt::sys::cublasLtHandle_t>,
    pub(super) dnn: Option<cudnn::sys::cudnnHandle_t>,
    /// What cuDNN chose for each convolution it has seen.
    pub(super) plans: HashMap<dnn::PlanKey, dnn::Plan>,
    /// What cuBLASLt chose for each product.
    pub(super) sums: HashMap<sums::PlanKey, sums::Plan>,
    pub(super) workspace: (sys::CUdeviceptr, usize),
    /// Whether a recording replays on that.
    pub(super) workspace_recorded: bool,
    /// By the address of their image.
    modules: HashMap<usize, sys::CUmodule>,
    functions: HashMap<(usize, &'static str), sys::CUfunction>,
}

thread_local! {
    /// By the address of their stream.
    static SESSIONS: RefCell<HashMap<usize, Session>> = RefCell::default();
    static DEVICES: RefCell<HashMap<DeviceId, DeviceHandle<Server>>> = RefCell::default();
}

/// What went wrong on a device's thread, until someone hears of it.
static FAILURE: Mutex<Option<String>> = Mutex::new(None);

/// Runs `task` in the order of the stream on which `tensors` live, with their addresses. Returns at once.
///
/// # Panics
/// As [`submit_all`].
pub(super) fn submit<const N: usize>(
    tensors: [&CubeTensor; N],
    task: impl FnOnce(&mut Session, [u64; N]) -> Result<(), String> + Send + 'static,
) {
    submit_all(&tensors, move |session, addresses| {
        let addresses = addresses.try_into().map_err(refused("addresses"))?;
        task(session, addresses)
    });
}

/// [`submit`] with as many tensors as there are.
///
/// # Panics
/// Where an earlier task was refused by the driver or a library (no memory, a broken device): what it should have
/// written is not there, and nothing that is computed from it means anything.
pub(super) fn submit_all(
    tensors: &[&CubeTensor],
    task: impl FnOnce(&mut Session, &[u64]) -> Result<(), String> + Send + 'static,
) {
    if let Some(failure) = FAILURE.lock().unwrap_or_else(PoisonError::into_inner).clone() {
        panic!("the CUDA device failed: {failure}");
    }
    // Bindings, not handles: those that wait for the device's thread would count as users of the memory, and keep the
    // backend from working in place on what is no longer needed.
    let bindings: Vec<BufferBinding> =
        tensors.iter().map(|tensor| tensor.handle.clone().binding()).collect();
    let Some(id) = bindings.first().map(|binding| binding.service.device) else { return };
    DEVICES.with_borrow_mut(|devices| {
        let device = devices.entry(id).or_insert_with(|| DeviceHandle::<Server>::new(id));
        device.submit(move |server| {
            if let Err(failure) = enqueue(server, bindings, task) {
                *FAILURE.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
            }
        });
    });
}

/// Runs `task` on the device's thread.
fn enqueue(
    server: &mut Server,
    bindings: Vec<BufferBinding>,
    task: impl FnOnce(&mut Session, &[u64]) -> Result<(), String>,
) -> Result<(), String> {
    // That of the thread which sent the task.
    let id = StreamId::current();
    let stream = stream_of(server, id).ok_or("the device's thread has no stream for a task")?;
    let homes = bindings.iter().filter_map(|binding| stream_of(server, binding.stream));
    let mut others: Vec<_> = homes.filter(|home| *home != stream).collect();
    others.sort_unstable();
    others.dedup();
    if let Some(capture) = server.capturing(id).filter(|capture| capture.is_recording()) {
        // A graph replays on these addresses, and has to keep them.
        for binding in &bindings {
            capture.touch(binding.stream, binding.memory.descriptor().location());
        }
        capture.record(bindings.clone());
        // What other streams wrote was waited for before the recording began.
        others.clear();
    }
    // Held until the work is enqueued: memory that is given back after that is reused in stream order.
    let resources: Vec<_> =
        bindings.into_iter().map(|binding| server.get_resource(binding, id)).collect();
    let mut addresses = Vec::with_capacity(resources.len());
    for resource in &resources {
        match resource {
            Ok(resource) => addresses.push(resource.resource().ptr),
            // An earlier kernel failed, which its reader is told.
            Err(_) => return Ok(()),
        }
    }
    SESSIONS.with_borrow_mut(|sessions| {
        let session = match sessions.entry(stream as usize) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Session::new(stream)?),
        };
        session.among(&others, |session| task(session, &addresses))
    })
}

/// Whether a stream is being recorded: it does nothing meanwhile, and waits for nothing.
#[allow(unsafe_code, reason = "a call of the CUDA driver")]
pub(super) fn recording(stream: sys::CUstream) -> bool {
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the backend's streams live as long as the process.
    let found = unsafe { sys::cuStreamIsCapturing(stream, &mut status) };
    found.result().is_ok() && status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE
}

/// The backend's stream for a thread.
fn stream_of(server: &mut Server, id: StreamId) -> Option<sys::CUstream> {
    server.write_streams().try_stream_mut(&id).map(|stream| stream.sys)
}

#[allow(unsafe_code, reason = "calls of the CUDA driver")]
impl Session {
    fn new(stream: sys::CUstream) -> Result<Self, String> {
        // Scratch memory may be wanted while another stream is recorded, which forbids it to a thread that does not say
        // that the recording does not depend on it.
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: changes what this thread is allowed, and writes what it was.
        unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }
            .result()
            .map_err(refused("cuThreadExchangeStreamCaptureMode"))?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        Ok(Self {
            stream,
            event: result::event::create(flags).map_err(refused("cuEventCreate"))?,
            blas: None,
            lt: None,
            dnn: None,
            plans: HashMap::new(),
            sums: HashMap::new(),
            workspace: (0, 0),
            workspace_recorded: false,
            modules: HashMap::new(),
            functions: HashMap::new(),
        })
    }

    /// Runs `task` after all that was enqueued on the `others`, and before all that comes there.
    fn among(
        &mut self,
        others: &[sys::CUstream],
        task: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let others: Vec<_> = others.iter().copied().filter(|other| !recording(*other)).collect();
        let wait = |stream, event| {
            let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            // SAFETY: stream and event live as long as the process.
            unsafe { result::stream::wait_event(stream, event, flags) }
                .map_err(refused("cuStreamWaitEvent"))
        };
        let record = |event, stream| {
            // SAFETY: as above.
            unsafe { result::event::record(event, stream) }.map_err(refused("cuEventRecord"))
        };
        for other in &others {
            // A wait is for what the event meant when it was asked for, so that one serves all.
            record(self.event, *other)?;
            wait(self.stream, self.event)?;
        }
        task(self)?;
        if !others.is_empty() {
            record(self.event, self.stream)?;
        }
        others.into_iter().try_for_each(|other| wait(other, self.event))
    }

    /// Launches a kernel of `kernels.cu`; `shared` bytes of shared memory for each block.
    pub(super) fn launch(
        &mut self,
        name: &'static str,
        grid: [usize; 2],
        block: usize,
        shared: usize,
        arguments: Vec<u64>,
    ) -> Result<(), String> {
        let image = kernels().ok_or("kernels.cu was not compiled")?;
        self.launch_of(image, name, grid, block, shared, arguments)
    }

    /// [`Session::launch`] of another image's kernel.
    pub(super) fn launch_of(
        &mut self,
        image: Image,
        name: &'static str,
        grid: [usize; 2],
        block: usize,
        shared: usize,
        mut arguments: Vec<u64>,
    ) -> Result<(), String> {
        // Every argument is eight bytes: an address, a count, or a float in the low half.
        let arguments = arguments.iter_mut().map(|value| std::ptr::from_mut(value).cast());
        self.launch_on(image, name, grid, block, shared, arguments.collect())
    }

    /// The same for a kernel whose one argument is a struct of eight-byte numbers.
    pub(super) fn launch_table(
        &mut self,
        name: &'static str,
        grid: [usize; 2],
        block: usize,
        table: &mut [u64],
    ) -> Result<(), String> {
        let image = kernels().ok_or("kernels.cu was not compiled")?;
        self.launch_on(image, name, grid, block, 0, vec![table.as_mut_ptr().cast()])
    }

    fn launch_on(
        &mut self,
        image: Image,
        name: &'static str,
        grid: [usize; 2],
        block: usize,
        shared: usize,
        mut arguments: Vec<*mut c_void>,
    ) -> Result<(), String> {
        let function = self.function(image, name)?;
        if shared > PLAIN_SHARED {
            allow_shared(function, shared)?;
        }
        let (grid, block) = ((grid[0] as u32, grid[1] as u32, 1), (block as u32, 1, 1));
        // SAFETY: the arguments are those of the kernel of this name.
        unsafe {
            result::launch_kernel(function, grid, block, shared as u32, self.stream, &mut arguments)
        }
        .map_err(refused(name))
    }

    fn function(&mut self, image: Image, name: &'static str) -> Result<sys::CUfunction, String> {
        let key = std::ptr::from_ref(image) as usize;
        if let Some(function) = self.functions.get(&(key, name)) {
            return Ok(*function);
        }
        let bytes = image.as_bytes().ok_or("a kernel's image is empty")?;
        // SAFETY: the image is whole and the context is current; module and function live as long as the process.
        let function = unsafe {
            let module = match self.modules.get(&key) {
                Some(module) => *module,
                None => result::module::load_data(bytes.as_ptr().cast())
                    .map_err(refused("cuModuleLoadData"))?,
            };
            self.modules.insert(key, module);
            let name = CString::new(name).map_err(refused("a kernel's name"))?;
            result::module::get_function(module, name).map_err(refused("cuModuleGetFunction"))?
        };
        Ok(*self.functions.entry((key, name)).or_insert(function))
    }
}

/// Lets a kernel have more of shared memory than it may without asking.
#[allow(unsafe_code, reason = "a call of the CUDA driver")]
fn allow_shared(function: sys::CUfunction, bytes: usize) -> Result<(), String> {
    let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: the function lives as long as the process.
    unsafe { result::function::set_function_attribute(function, most, bytes as i32) }
        .map_err(refused("cuFuncSetAttribute"))
}

/// An error with the name of what gave it.
pub(super) fn refused<E: std::fmt::Debug>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error:?}")
}
