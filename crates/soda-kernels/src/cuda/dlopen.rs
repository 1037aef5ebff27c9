//! Whether the machine has NVIDIA's libraries, which are opened at run time.

use std::sync::OnceLock;

use cubecl_cuda::install::cuda_path;
use cudarc::{cublas, cublaslt, cudnn, nvrtc};

/// What this machine lacks of that without which no kernel is compiled. `None` if it has all of it.
#[allow(unsafe_code, reason = "opens a library")]
pub fn missing_for_cuda() -> Option<&'static str> {
    // SAFETY: as for cuBLAS.
    if !unsafe { nvrtc::sys::is_culib_present() } {
        return Some("NVIDIA's compiler library NVRTC");
    }
    let has_headers = |folder: std::path::PathBuf| folder.join("include/cuda_fp16.h").is_file();
    (!cuda_path().is_some_and(has_headers)).then_some("the headers of CUDA in CUDA_PATH")
}

/// Whether this machine has cuBLAS.
#[allow(unsafe_code, reason = "opens a library")]
pub(super) fn cublas_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: the call tries to open the library under its usual names and does nothing else.
    *PRESENT.get_or_init(|| unsafe { cublas::sys::is_culib_present() })
}

/// Whether this machine has cuBLASLt, which comes with cuBLAS.
#[allow(unsafe_code, reason = "opens a library")]
pub(super) fn cublaslt_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: as for cuBLAS.
    *PRESENT.get_or_init(|| unsafe { cublaslt::sys::is_culib_present() })
}

/// The version of cuBLASLt, 120900 for 12.9.0. `None` if this machine has none.
#[allow(unsafe_code, reason = "a call of cuBLASLt")]
pub(super) fn cublaslt_version() -> Option<usize> {
    static VERSION: OnceLock<Option<usize>> = OnceLock::new();
    // SAFETY: the library is there, and the call reads a number.
    *VERSION
        .get_or_init(|| cublaslt_present().then(|| unsafe { cublaslt::sys::cublasLtGetVersion() }))
}

/// Whether this machine has cuDNN.
#[allow(unsafe_code, reason = "opens a library")]
pub(super) fn cudnn_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: as for cuBLAS.
    *PRESENT.get_or_init(|| unsafe { cudnn::sys::is_culib_present() })
}
