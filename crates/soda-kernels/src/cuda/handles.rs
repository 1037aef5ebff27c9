//! Handles of NVIDIA's libraries, their plans and their workspaces, for each stream.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::{result, sys};
use cudarc::{cublas, cublaslt, cudnn};

use super::driver::{driver_error, is_capturing};
use super::{cublaslt_plan, cudnn_plan};

/// The workspace of cuBLAS in bytes: the size that it asks for on Hopper. Left alone, cuBLAS allocates in
/// stream order, which a graph cannot replay.
const CUBLAS_WORKSPACE: usize = 32 << 20;

/// The bytes of all workspaces.
static WORKSPACE_BYTES: AtomicU64 = AtomicU64::new(0);

/// The bytes of all workspaces of the libraries.
pub(crate) fn workspace_bytes() -> u64 {
    WORKSPACE_BYTES.load(Ordering::Relaxed)
}

/// The libraries' handles, plans and workspace on one stream. Each handle is created at its first use.
pub(super) struct Handles {
    stream: sys::CUstream,
    cublas: Option<cublas::sys::cublasHandle_t>,
    cublaslt: Option<cublaslt::sys::cublasLtHandle_t>,
    cudnn: Option<cudnn::sys::cudnnHandle_t>,
    /// The algorithm of each convolution so far.
    pub(super) cudnn_plans: HashMap<cudnn_plan::PlanKey, cudnn_plan::Plan>,
    /// The algorithm of each product of cuBLASLt so far.
    pub(super) cublaslt_plans: HashMap<cublaslt_plan::PlanKey, cublaslt_plan::Plan>,
    workspace: (sys::CUdeviceptr, usize),
    /// Whether a captured graph uses the workspace.
    workspace_captured: bool,
}

/// The plan for `key`, made by `make` at its first use. A plan lives as long as the process: a network has
/// few shapes.
pub(super) fn planned<K: Copy + Eq + Hash + Debug, P: Copy, E: Debug>(
    plans: &mut HashMap<K, P>,
    key: K,
    make: impl FnOnce(&K) -> Result<P, E>,
) -> Result<P, String> {
    if let Some(plan) = plans.get(&key) {
        return Ok(*plan);
    }
    let plan = make(&key).map_err(|error| format!("no algorithm for {key:?}: {error:?}"))?;
    Ok(*plans.entry(key).or_insert(plan))
}

/// A handle, created by `make` at its first use.
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
impl Handles {
    pub(super) fn new(stream: sys::CUstream) -> Self {
        Self {
            stream,
            cublas: None,
            cublaslt: None,
            cudnn: None,
            cudnn_plans: HashMap::new(),
            cublaslt_plans: HashMap::new(),
            workspace: (0, 0),
            workspace_captured: false,
        }
    }

    pub(super) fn cublas(&mut self) -> Result<cublas::sys::cublasHandle_t, String> {
        opened(&mut self.cublas, || {
            let handle = cublas::result::create_handle().map_err(driver_error("cublasCreate"))?;
            // SAFETY: handle, stream and workspace live as long as the process; the workspace belongs to this
            // handle alone.
            unsafe {
                cublas::result::set_stream(handle, self.stream.cast())
                    .map_err(driver_error("cublasSetStream"))?;
                let workspace = result::malloc_sync(CUBLAS_WORKSPACE)
                    .map_err(driver_error("the workspace of cuBLAS"))?;
                cublas::sys::cublasSetWorkspace_v2(
                    handle,
                    workspace as *mut c_void,
                    CUBLAS_WORKSPACE,
                )
                .result()
                .map_err(driver_error("cublasSetWorkspace"))?;
            }
            WORKSPACE_BYTES.fetch_add(CUBLAS_WORKSPACE as u64, Ordering::Relaxed);
            Ok(handle)
        })
    }

    /// The handle of cuBLASLt, whose calls name their stream.
    pub(super) fn cublaslt(&mut self) -> Result<cublaslt::sys::cublasLtHandle_t, String> {
        let make = || cublaslt::result::create_handle().map_err(driver_error("cublasLtCreate"));
        opened(&mut self.cublaslt, make)
    }

    pub(super) fn cudnn(&mut self) -> Result<cudnn::sys::cudnnHandle_t, String> {
        opened(&mut self.cudnn, || {
            let handle = cudnn::result::create_handle().map_err(driver_error("cudnnCreate"))?;
            // SAFETY: handle and stream live as long as the process.
            unsafe { cudnn::result::set_stream(handle, self.stream.cast()) }
                .map_err(driver_error("cudnnSetStream"))?;
            Ok(handle)
        })
    }

    /// A workspace of at least `bytes`. All tasks of the stream share it, since they run one after the other.
    pub(super) fn workspace(&mut self, bytes: usize) -> Result<*mut c_void, String> {
        if self.workspace.1 < bytes {
            // SAFETY: freeing waits for the device, so no task uses the old workspace any more. A workspace
            // that a captured graph uses is not freed.
            unsafe {
                if self.workspace.1 > 0 && !self.workspace_captured {
                    result::free_sync(self.workspace.0).map_err(driver_error("cuMemFree"))?;
                    WORKSPACE_BYTES.fetch_sub(self.workspace.1 as u64, Ordering::Relaxed);
                }
                (self.workspace, self.workspace_captured) = ((0, 0), false);
                let address = result::malloc_sync(bytes)
                    .map_err(driver_error("the workspace of a library's call"))?;
                self.workspace = (address, bytes);
                WORKSPACE_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
            }
        }
        self.workspace_captured |= is_capturing(self.stream);
        Ok(self.workspace.0 as *mut c_void)
    }
}
