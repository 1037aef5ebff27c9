//! Work of our own between the backend's: one stream beside its stream, ordered by events.
//!
//! CubeCL runs a device on one thread and does not show its stream. A task is therefore sent to that thread,
//! where everything asked for before it has been enqueued, and is put in order with the context's events
//! (CUDA 12.5):
//!
//! ```text
//! all that was enqueued so far --> cuCtxRecordEvent --> our stream --> cuCtxWaitEvent --> all that comes
//! ```
//!
//! which costs about 2 µs of the host. Nothing waits on the host.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::OnceLock;

use burn_cubecl::cubecl::cuda::CudaRuntime;
use burn_cubecl::cubecl::device_handle::DeviceHandle;
use burn::backend::StreamId;
use burn_cubecl::cubecl::server::{Handle, ServerStorage};
use burn_cubecl::cubecl::{__private::Runtime, device::DeviceId};
use burn_cubecl::tensor::CubeTensor;
use cudarc::driver::{result, sys};
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use cudarc::{cublas, cudnn};

use super::dnn::{Plan, PlanKey};

type Server = <CudaRuntime as Runtime>::Server;

/// Whether this machine has cuBLAS.
#[allow(unsafe_code, reason = "opens a library")]
pub(super) fn blas_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: tries to open the library under its usual names, no more.
    *PRESENT.get_or_init(|| unsafe { cublas::sys::is_culib_present() })
}

/// Whether this machine has cuDNN.
#[allow(unsafe_code, reason = "opens a library")]
pub(super) fn dnn_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: as above.
    *PRESENT.get_or_init(|| unsafe { cudnn::sys::is_culib_present() })
}

/// What a task works with, one for each device thread.
pub(super) struct Session {
    pub(super) stream: sys::CUstream,
    before: sys::CUevent,
    after: sys::CUevent,
    context: sys::CUcontext,
    blas: Option<cublas::sys::cublasHandle_t>,
    dnn: Option<cudnn::sys::cudnnHandle_t>,
    /// What cuDNN chose for each convolution it has seen.
    pub(super) plans: HashMap<PlanKey, Plan>,
    workspace: (sys::CUdeviceptr, usize),
    module: Option<sys::CUmodule>,
    functions: HashMap<&'static str, sys::CUfunction>,
}

thread_local! {
    static SESSION: RefCell<Option<Session>> = const { RefCell::new(None) };
    static DEVICES: RefCell<HashMap<DeviceId, DeviceHandle<Server>>> = RefCell::default();
}

/// Runs `task` in the order of the stream on which `tensors` live, with their addresses. Returns at once.
///
/// # Panics
/// On the device's thread, where a driver or a library refuses: the device is lost then, and the next thing asked of
/// it says so.
pub(super) fn submit<const N: usize>(
    tensors: [&CubeTensor; N],
    task: impl FnOnce(&mut Session, [u64; N]) + Send + 'static,
) {
    let handles: [Handle; N] = tensors.map(|tensor| tensor.handle.clone());
    let id = handles[0].service.device;
    DEVICES.with_borrow_mut(|devices| {
        let device = devices.entry(id).or_insert_with(|| DeviceHandle::<Server>::new(id));
        device.submit(move |server| {
            let stream = StreamId::current();
            // Held until the work is enqueued: memory that is given back after that is reused in stream order.
            let resources = handles.map(|handle| {
                server.get_resource(handle.binding(), stream).expect("a buffer of this device")
            });
            let addresses = resources.each_ref().map(|resource| resource.resource().ptr);
            SESSION.with_borrow_mut(|session| {
                let session = session.get_or_insert_with(Session::new);
                session.in_order(|session| task(session, addresses));
            });
        });
    });
}

#[allow(unsafe_code, reason = "calls of the CUDA driver")]
impl Session {
    fn new() -> Self {
        let event = || {
            result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).expect("a CUDA event")
        };
        Self {
            stream: result::stream::create(result::stream::StreamKind::NonBlocking)
                .expect("a CUDA stream"),
            before: event(),
            after: event(),
            context: result::ctx::get_current()
                .ok()
                .flatten()
                .expect("the device thread has a context"),
            blas: None,
            dnn: None,
            plans: HashMap::new(),
            workspace: (0, 0),
            module: None,
            functions: HashMap::new(),
        }
    }

    fn in_order(&mut self, task: impl FnOnce(&mut Self)) {
        let check = |what: &str, status: sys::CUresult| {
            status.result().unwrap_or_else(|error| panic!("{what}: {error}"));
        };
        // SAFETY: context, stream and events are this session's and live as long as the process.
        unsafe {
            check("cuCtxRecordEvent", sys::cuCtxRecordEvent(self.context, self.before));
            check("cuStreamWaitEvent", sys::cuStreamWaitEvent(self.stream, self.before, 0));
        }
        task(self);
        // SAFETY: as above.
        unsafe {
            check("cuEventRecord", sys::cuEventRecord(self.after, self.stream));
            check("cuCtxWaitEvent", sys::cuCtxWaitEvent(self.context, self.after));
        }
    }

    pub(super) fn blas(&mut self) -> cublas::sys::cublasHandle_t {
        let stream = self.stream;
        *self.blas.get_or_insert_with(|| {
            let handle = cublas::result::create_handle().expect("a cuBLAS handle");
            // SAFETY: both live as long as the process.
            unsafe { cublas::result::set_stream(handle, stream.cast()) }
                .expect("cuBLAS takes a stream");
            handle
        })
    }

    pub(super) fn dnn(&mut self) -> cudnn::sys::cudnnHandle_t {
        let stream = self.stream;
        *self.dnn.get_or_insert_with(|| {
            let handle = cudnn::result::create_handle().expect("a cuDNN handle");
            // SAFETY: both live as long as the process.
            unsafe { cudnn::result::set_stream(handle, stream.cast()) }
                .expect("cuDNN takes a stream");
            handle
        })
    }

    /// Scratch memory of at least `bytes`, the same for all tasks: they run one after the other.
    pub(super) fn workspace(&mut self, bytes: usize) -> *mut c_void {
        if self.workspace.1 < bytes {
            // SAFETY: freeing waits for the device, so that no task still uses the old one.
            unsafe {
                if self.workspace.1 > 0 {
                    result::free_sync(self.workspace.0).expect("scratch memory is given back");
                }
                self.workspace = (
                    result::malloc_sync(bytes).unwrap_or_else(|error| {
                        panic!("no {bytes} bytes of scratch memory for a convolution: {error}")
                    }),
                    bytes,
                );
            }
        }
        self.workspace.0 as *mut c_void
    }

    /// Launches a kernel of `kernels.cu`.
    pub(super) fn launch(
        &mut self,
        name: &'static str,
        grid: [usize; 2],
        block: usize,
        arguments: Vec<u64>,
    ) {
        self.launch_shared(name, grid, block, 0, arguments);
    }

    /// The same, with `shared` bytes of shared memory for each block.
    pub(super) fn launch_shared(
        &mut self,
        name: &'static str,
        grid: [usize; 2],
        block: usize,
        shared: usize,
        mut arguments: Vec<u64>,
    ) {
        let module = *self.module.get_or_insert_with(compile);
        let function = *self.functions.entry(name).or_insert_with(|| {
            let name = CString::new(name).expect("a name without NUL");
            // SAFETY: the module lives as long as the process.
            unsafe { result::module::get_function(module, name) }.expect("a kernel of kernels.cu")
        });
        // Every argument is eight bytes: an address, a count, or a float in the low half.
        let mut arguments: Vec<*mut c_void> =
            arguments.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        // SAFETY: the arguments are those of the kernel of this name.
        unsafe {
            result::launch_kernel(
                function,
                (grid[0] as u32, grid[1] as u32, 1),
                (block as u32, 1, 1),
                shared as u32,
                self.stream,
                &mut arguments,
            )
        }
        .unwrap_or_else(|error| panic!("cannot launch {name}: {error}"));
    }
}

/// Compiles `kernels.cu` for this device.
#[allow(unsafe_code, reason = "calls of the CUDA driver")]
fn compile() -> sys::CUmodule {
    let device = result::device::get(0).expect("a device");
    let attribute = |which| {
        // SAFETY: reads a property.
        unsafe { result::device::get_attribute(device, which) }.expect("a property of the device")
    };
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let options = CompileOptions {
        options: vec![format!("--gpu-architecture=compute_{}{}", attribute(MAJOR), attribute(MINOR))],
        ..Default::default()
    };
    let ptx = compile_ptx_with_opts(include_str!("kernels.cu"), options)
        .unwrap_or_else(|error| panic!("kernels.cu does not compile: {error:?}"));
    let image = ptx.as_bytes().expect("an image in memory");
    // SAFETY: the image is whole and the context is current.
    unsafe { result::module::load_data(image.as_ptr().cast()) }.expect("the kernels load")
}
