//! Sums over the GPUs of several processes, by NCCL.
//!
//! NCCL is opened at run time. A machine with PyTorch has it as `libnccl.so.2`, a name that cudarc does not
//! try. Only the five functions that are used are looked up, and their interface is that of all versions 2.

use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cudarc::driver::sys as driver;
use libloading::Library;

use super::stream::{flush, submit};
use super::support::{Cube, on_cuda};

/// The bytes by which ranks find each other.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([c_char; 128]);

/// A communicator of NCCL.
type Comm = *mut c_void;

/// `ncclFloat32` and `ncclSum`.
const FLOAT32: c_int = 7;
const SUM: c_int = 0;

/// The time between two looks whether a sum is done.
const LOOK: Duration = Duration::from_micros(200);

/// The functions of the library. Each returns 0 for success.
struct Functions {
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    comm_init_rank: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> c_int,
    all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        c_int,
        Comm,
        driver::CUstream,
    ) -> c_int,
    comm_abort: unsafe extern "C" fn(Comm) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

#[allow(unsafe_code, reason = "calls of NCCL")]
impl Functions {
    /// The functions of this machine's library.
    fn get() -> Result<&'static Self, String> {
        static FUNCTIONS: OnceLock<Result<Functions, String>> = OnceLock::new();
        FUNCTIONS.get_or_init(Self::open).as_ref().map_err(Clone::clone)
    }

    fn open() -> Result<Self, String> {
        let names = ["libnccl.so.2", "libnccl.so", "nccl.dll"];
        // SAFETY: NVIDIA's library does nothing of its own when it is opened.
        let library = names.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
        let missing =
            "this machine has no NCCL (libnccl.so.2), or not in a folder of LD_LIBRARY_PATH";
        // The library stays open as long as the process.
        let library: &'static Library = Box::leak(Box::new(library.ok_or(missing)?));
        // SAFETY: the types are those of `nccl.h`, which versions 2 have alike.
        unsafe {
            Ok(Self {
                get_unique_id: symbol(library, "ncclGetUniqueId")?,
                comm_init_rank: symbol(library, "ncclCommInitRank")?,
                all_reduce: symbol(library, "ncclAllReduce")?,
                comm_abort: symbol(library, "ncclCommAbort")?,
                error_string: symbol(library, "ncclGetErrorString")?,
            })
        }
    }

    /// The error of the call `name`, which returned `code`.
    fn check(&self, name: &str, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: NCCL returns a string of its own for every code.
        let text = unsafe {
            let text = (self.error_string)(code);
            if text.is_null() { None } else { Some(std::ffi::CStr::from_ptr(text)) }
        };
        let text = text.map_or_else(|| code.to_string(), |text| text.to_string_lossy().into());
        Err(format!("{name}: {text}; NCCL_DEBUG=WARN says more"))
    }
}

/// # Safety
/// `F` must be the type of the function.
#[allow(unsafe_code, reason = "looks a function up")]
unsafe fn symbol<F: Copy>(library: &'static Library, name: &str) -> Result<F, String> {
    // SAFETY: the caller names the type.
    let found = unsafe { library.get::<F>(name.as_bytes()) };
    found.map(|symbol| *symbol).map_err(|error| format!("NCCL has no {name}: {error}"))
}

/// The GPUs of several processes.
pub(crate) struct Communicator {
    /// The address of NCCL's communicator, which threads may share.
    comm: usize,
}

/// Why NCCL cannot add tensors on the device of `x`. `None` if it can.
pub(crate) fn nccl_refusal(x: &Tensor<1>) -> Option<String> {
    primitive(x).err().or_else(|| Functions::get().err())
}

/// Bytes by which the ranks find each other. One of them makes it.
#[allow(unsafe_code, reason = "a call of NCCL")]
pub(crate) fn nccl_unique_id() -> Result<[u8; 128], String> {
    let functions = Functions::get()?;
    let mut id = UniqueId([0; 128]);
    // SAFETY: `id` has the size of NCCL's type.
    functions.check("ncclGetUniqueId", unsafe { (functions.get_unique_id)(&mut id) })?;
    Ok(id.0.map(|byte| byte as u8))
}

#[allow(unsafe_code, reason = "calls of NCCL")]
impl Communicator {
    /// Joins the ranks with this id, with the device of `x`. Waits until all have joined. `None` if they have
    /// not within `patience`: the device's thread waits for them, and does nothing else any more.
    pub(crate) fn join(
        x: &Tensor<1>,
        rank: usize,
        world: usize,
        id: [u8; 128],
        patience: Duration,
    ) -> Result<Option<Self>, String> {
        let functions = Functions::get()?;
        let (rank, world) = (rank as c_int, world as c_int);
        let (sender, receiver) = channel();
        // The device's thread has the device's context.
        submit([&primitive(x)?], move |_, [_]| {
            let mut comm: Comm = std::ptr::null_mut();
            let id = UniqueId(id.map(|byte| byte as c_char));
            // SAFETY: all ranks call it with one id and different ranks.
            let code = unsafe { (functions.comm_init_rank)(&mut comm, world, id, rank) };
            let _ = sender.send(functions.check("ncclCommInitRank", code).map(|()| comm as usize));
            Ok(())
        });
        flush();
        match receiver.recv_timeout(patience) {
            Ok(joined) => joined.map(|comm| Some(Self { comm })),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err("the CUDA device failed".to_owned()),
        }
    }

    /// Leaves the others, who get an error in their next sum.
    pub(crate) fn abort(self) {
        if let Ok(functions) = Functions::get() {
            // SAFETY: nothing uses the communicator after it.
            unsafe { (functions.comm_abort)(self.comm as Comm) };
        }
    }

    /// Replaces `x` by the sum of the `x` of all ranks, and waits for it. The memory of `x` changes.
    pub(crate) fn sum(&self, x: &Tensor<1>, patience: Duration) -> Result<Tensor<1>, String> {
        let functions = Functions::get()?;
        let (count, comm) = (x.dims()[0], self.comm);
        let x = primitive(x)?;
        let (sender, receiver) = channel();
        submit([&x], move |context, [address]| {
            let x = address as *mut c_void;
            // SAFETY: the memory of `x` holds `count` numbers, and the stream's later work waits for the sum.
            let code = unsafe {
                (functions.all_reduce)(x, x, count, FLOAT32, SUM, comm as Comm, context.stream)
            };
            let _ = sender.send(functions.check("ncclAllReduce", code));
            Ok(())
        });
        flush();
        let until = Instant::now() + patience;
        let late = || {
            // SAFETY: NCCL lets another thread abort, which ends its kernel on the device.
            unsafe { (functions.comm_abort)(comm as Comm) };
            format!("NCCL's sum took more than {} s", patience.as_secs())
        };
        match receiver.recv_timeout(patience) {
            Ok(queued) => queued?,
            Err(RecvTimeoutError::Timeout) => return Err(late()),
            // A failure that the device reports where a result is read.
            Err(RecvTimeoutError::Disconnected) => {}
        }
        while !is_done(&x)? {
            if Instant::now() >= until {
                return Err(late());
            }
            std::thread::sleep(LOOK);
        }
        Ok(Tensor::from_primitive::<Cube>(x))
    }
}

/// Whether the device has done all that was queued before.
#[allow(unsafe_code, reason = "a call of the CUDA driver")]
fn is_done(x: &CubeTensor) -> Result<bool, String> {
    let (sender, receiver) = channel();
    submit([x], move |context, [_]| {
        // SAFETY: the backend's streams live as long as the process.
        let _ = sender.send(unsafe { driver::cuStreamQuery(context.stream) });
        Ok(())
    });
    flush();
    match receiver.recv() {
        Ok(driver::CUresult::CUDA_ERROR_NOT_READY) => Ok(false),
        Ok(driver::CUresult::CUDA_SUCCESS) => Ok(true),
        Ok(error) => Err(format!("the CUDA device failed: {error:?}")),
        // The tensor has no memory. The device reports it where a result is read.
        Err(_) => Ok(true),
    }
}

/// The backend's tensor, in f32 on a CUDA device.
fn primitive(x: &Tensor<1>) -> Result<CubeTensor, String> {
    let x = x.clone().without_autodiff().try_into_primitive::<Cube>().ok();
    let x = x.filter(|x| on_cuda(x) && x.dtype == DType::F32);
    x.ok_or_else(|| "NCCL adds numbers in f32 on CUDA devices only".to_owned())
}
