//! Whether the machine has NVIDIA's libraries, which are opened at run time.

use std::sync::OnceLock;

use cudarc::{cublas, cublaslt, cudnn};

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

/// Whether this machine has cuDNN.
#[allow(unsafe_code, reason = "opens a library")]
pub(super) fn cudnn_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: as for cuBLAS.
    *PRESENT.get_or_init(|| unsafe { cudnn::sys::is_culib_present() })
}
