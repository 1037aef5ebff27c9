//! NVIDIA's libraries, loaded at run time where the machine has them, and what they work in.

use std::ffi::c_void;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::result;
use cudarc::{cublas, cublaslt, cudnn};

use super::session::{Session, refused};

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

#[allow(unsafe_code, reason = "calls of the driver and the libraries")]
impl Session {
    pub(super) fn blas(&mut self) -> Result<cublas::sys::cublasHandle_t, String> {
        if let Some(handle) = self.blas {
            return Ok(handle);
        }
        let handle = cublas::result::create_handle().map_err(refused("cublasCreate"))?;
        // SAFETY: both live as long as the process.
        unsafe { cublas::result::set_stream(handle, self.stream.cast()) }
            .map_err(refused("cublasSetStream"))?;
        // SAFETY: given to this handle alone, as long as the process lives.
        unsafe {
            let scratch = result::malloc_sync(BLAS_SCRATCH)
                .map_err(refused("scratch memory for matrix products"))?;
            cublas::sys::cublasSetWorkspace_v2(handle, scratch as *mut c_void, BLAS_SCRATCH)
                .result()
                .map_err(refused("cublasSetWorkspace"))?;
        }
        SCRATCH.fetch_add(BLAS_SCRATCH as u64, Ordering::Relaxed);
        Ok(*self.blas.insert(handle))
    }

    /// It works on the stream that each call names.
    pub(super) fn lt(&mut self) -> Result<cublaslt::sys::cublasLtHandle_t, String> {
        if let Some(handle) = self.lt {
            return Ok(handle);
        }
        let handle = cublaslt::result::create_handle().map_err(refused("cublasLtCreate"))?;
        Ok(*self.lt.insert(handle))
    }

    pub(super) fn dnn(&mut self) -> Result<cudnn::sys::cudnnHandle_t, String> {
        if let Some(handle) = self.dnn {
            return Ok(handle);
        }
        let handle = cudnn::result::create_handle().map_err(refused("cudnnCreate"))?;
        // SAFETY: both live as long as the process.
        unsafe { cudnn::result::set_stream(handle, self.stream.cast()) }
            .map_err(refused("cudnnSetStream"))?;
        Ok(*self.dnn.insert(handle))
    }

    /// Scratch memory of at least `bytes`, the same for all tasks: they run one after the other.
    pub(super) fn workspace(&mut self, bytes: usize) -> Result<*mut c_void, String> {
        if self.workspace.1 < bytes {
            // SAFETY: freeing waits for the device, so that no task still uses the old one.
            unsafe {
                if self.workspace.1 > 0 {
                    result::free_sync(self.workspace.0).map_err(refused("cuMemFree"))?;
                    SCRATCH.fetch_sub(self.workspace.1 as u64, Ordering::Relaxed);
                }
                self.workspace = (0, 0);
                let address = result::malloc_sync(bytes)
                    .map_err(refused("scratch memory for a convolution"))?;
                self.workspace = (address, bytes);
                SCRATCH.fetch_add(bytes as u64, Ordering::Relaxed);
            }
        }
        Ok(self.workspace.0 as *mut c_void)
    }
}
