//! NVIDIA's libraries, loaded at run time where the machine has them, and what they work in.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::result;
use cudarc::{cublas, cublaslt, cudnn};

use super::session::{Session, recording, refused};

/// What cuBLAS is given to work in: as much as it asks for on Hopper. Left alone it allocates in the order of the stream,
/// which a graph cannot replay.
const BLAS_SCRATCH: usize = 32 << 20;

/// Whether this machine has cuBLAS.
#[allow(unsafe_code, reason = "opens a library")]
pub(super) fn blas_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: tries to open the library under its usual names, no more.
    *PRESENT.get_or_init(|| unsafe { cublas::sys::is_culib_present() })
}

/// Whether this machine has cuBLASLt, which comes with cuBLAS.
#[allow(unsafe_code, reason = "opens a library")]
pub(super) fn lt_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: as above.
    *PRESENT.get_or_init(|| unsafe { cublaslt::sys::is_culib_present() })
}

/// Whether this machine has cuDNN.
#[allow(unsafe_code, reason = "opens a library")]
pub(super) fn dnn_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: as above.
    *PRESENT.get_or_init(|| unsafe { cudnn::sys::is_culib_present() })
}

/// Bytes that the libraries work in, of all sessions.
static SCRATCH: AtomicU64 = AtomicU64::new(0);

/// What the libraries work in, in bytes.
pub(crate) fn scratch() -> u64 {
    SCRATCH.load(Ordering::Relaxed)
}

/// What a library chose for `key`, asked for once by `make`. It lives as long as the process: a network has few shapes.
pub(super) fn planned<K: Copy + Eq + Hash + Debug, P: Copy, E: Debug>(
    plans: &mut HashMap<K, P>,
    key: K,
    make: impl FnOnce(&K) -> Result<P, E>,
) -> Result<P, String> {
    if let Some(plan) = plans.get(&key) {
        return Ok(*plan);
    }
    let plan =
        make(&key).map_err(|error| format!("no library has a way for {key:?}: {error:?}"))?;
    Ok(*plans.entry(key).or_insert(plan))
}

/// A handle, made when it is first asked for.
fn opened<H: Copy>(
    handle: &mut Option<H>,
    make: impl FnOnce() -> Result<H, String>,
) -> Result<H, String> {
    match handle {
        Some(handle) => Ok(*handle),
        None => Ok(*handle.insert(make()?)),
    }
}

#[allow(unsafe_code, reason = "calls of the driver and the libraries")]
impl Session {
    pub(super) fn blas(&mut self) -> Result<cublas::sys::cublasHandle_t, String> {
        opened(&mut self.blas, || {
            let handle = cublas::result::create_handle().map_err(refused("cublasCreate"))?;
            // SAFETY: handle and stream live as long as the process, and so does the scratch memory, which is this handle's alone.
            unsafe {
                cublas::result::set_stream(handle, self.stream.cast())
                    .map_err(refused("cublasSetStream"))?;
                let scratch = result::malloc_sync(BLAS_SCRATCH)
                    .map_err(refused("scratch memory for matrix products"))?;
                cublas::sys::cublasSetWorkspace_v2(handle, scratch as *mut c_void, BLAS_SCRATCH)
                    .result()
                    .map_err(refused("cublasSetWorkspace"))?;
            }
            SCRATCH.fetch_add(BLAS_SCRATCH as u64, Ordering::Relaxed);
            Ok(handle)
        })
    }

    /// It works on the stream that each call names.
    pub(super) fn lt(&mut self) -> Result<cublaslt::sys::cublasLtHandle_t, String> {
        let make = || cublaslt::result::create_handle().map_err(refused("cublasLtCreate"));
        opened(&mut self.lt, make)
    }

    pub(super) fn dnn(&mut self) -> Result<cudnn::sys::cudnnHandle_t, String> {
        opened(&mut self.dnn, || {
            let handle = cudnn::result::create_handle().map_err(refused("cudnnCreate"))?;
            // SAFETY: both live as long as the process.
            unsafe { cudnn::result::set_stream(handle, self.stream.cast()) }
                .map_err(refused("cudnnSetStream"))?;
            Ok(handle)
        })
    }

    /// Scratch memory of at least `bytes`, the same for all tasks: they run one after the other.
    pub(super) fn workspace(&mut self, bytes: usize) -> Result<*mut c_void, String> {
        if self.workspace.1 < bytes {
            // SAFETY: freeing waits for the device, so that no task still uses the old one; a recording that does keeps it.
            unsafe {
                if self.workspace.1 > 0 && !self.workspace_recorded {
                    result::free_sync(self.workspace.0).map_err(refused("cuMemFree"))?;
                    SCRATCH.fetch_sub(self.workspace.1 as u64, Ordering::Relaxed);
                }
                (self.workspace, self.workspace_recorded) = ((0, 0), false);
                let address = result::malloc_sync(bytes)
                    .map_err(refused("scratch memory for a library's call"))?;
                self.workspace = (address, bytes);
                SCRATCH.fetch_add(bytes as u64, Ordering::Relaxed);
            }
        }
        self.workspace_recorded |= recording(self.stream);
        Ok(self.workspace.0 as *mut c_void)
    }
}
