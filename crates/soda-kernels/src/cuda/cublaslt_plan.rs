//! The choice of a cuBLASLt algorithm for a product plus a matrix.

use std::ffi::{c_int, c_void};

use burn::tensor::DType;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

/// The largest workspace of an algorithm in bytes.
const MAX_WORKSPACE: usize = 32 << 20;

/// How a factor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Factor {
    pub(super) transposed: bool,
    /// The leading dimension.
    pub(super) ld: usize,
}

/// The properties of a product that cuBLASLt's choice of an algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PlanKey {
    pub(super) dtype: DType,
    /// `[m, k, n]`
    pub(super) sizes: [usize; 3],
    pub(super) lhs: Factor,
    pub(super) rhs: Factor,
    /// The alignment of all addresses in bytes.
    pub(super) alignment: u32,
}

/// The descriptors and the algorithm of a product.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    lhs: sys::cublasLtMatrixLayout_t,
    rhs: sys::cublasLtMatrixLayout_t,
    sum: sys::cublasLtMatrixLayout_t,
    chosen: sys::cublasLtMatmulHeuristicResult_t,
}

#[allow(unsafe_code, reason = "calls of cuBLASLt")]
impl Plan {
    pub(super) fn new(key: &PlanKey, handle: sys::cublasLtHandle_t) -> Result<Self, CublasError> {
        let [m, k, n] = key.sizes.map(|size| size as u64);
        let kind = match key.dtype {
            DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
            DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
            _ => sys::cudaDataType_t::CUDA_R_32F,
        };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let operation = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F)?;
        // cuBLASLt is column-major too and computes Y' = B' A' + C', so a factor that is stored transposed is
        // not transposed there.
        let layout = |factor: Factor, rows: u64, columns: u64| {
            let (rows, columns) = if factor.transposed { (rows, columns) } else { (columns, rows) };
            result::create_matrix_layout(kind, rows, columns, factor.ld as i64)
        };
        let (lhs, rhs) = (layout(key.lhs, m, k)?, layout(key.rhs, k, n)?);
        let sum = result::create_matrix_layout(kind, n, m, n as i64)?;
        let preference = result::create_matmul_pref()?;
        use sys::cublasLtMatmulDescAttributes_t as Of;
        use sys::cublasLtMatmulPreferenceAttributes_t as Wish;
        for (attribute, factor) in
            [(Of::CUBLASLT_MATMUL_DESC_TRANSA, key.rhs), (Of::CUBLASLT_MATMUL_DESC_TRANSB, key.lhs)]
        {
            let transposed = c_int::from(factor.transposed);
            let (at, size) = bytes(&transposed);
            // SAFETY: the attribute has this type.
            unsafe { result::set_matmul_desc_attribute(operation, attribute, at, size)? };
        }
        let (at, size) = bytes(&MAX_WORKSPACE);
        let most = Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: as above.
        unsafe { result::set_matmul_pref_attribute(preference, most, at, size)? };
        for wish in [
            Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            let (at, size) = bytes(&key.alignment);
            // SAFETY: as above.
            unsafe { result::set_matmul_pref_attribute(preference, wish, at, size)? };
        }
        // SAFETY: all descriptors are alive; the preference is not used afterwards.
        let chosen = unsafe {
            let (sum, wish) = (sum, preference);
            let chosen =
                result::get_matmul_algo_heuristic(handle, operation, rhs, lhs, sum, sum, wish);
            result::destroy_matmul_pref(preference)?;
            chosen?
        };
        Ok(Self { operation, lhs, rhs, sum, chosen })
    }

    /// The bytes of workspace that the algorithm needs.
    pub(super) fn workspace(&self) -> usize {
        self.chosen.workspaceSize
    }

    /// Computes `y = lhs rhs + addend` on `stream`.
    ///
    /// # Safety
    /// The addresses are those of live buffers of the plan's sizes, and the workspace has [`Plan::workspace`]
    /// bytes.
    pub(super) unsafe fn run(
        &self,
        handle: sys::cublasLtHandle_t,
        [lhs, rhs, addend, y]: [u64; 4],
        workspace: *mut c_void,
        stream: sys::cudaStream_t,
    ) -> Result<(), CublasError> {
        let one = std::ptr::from_ref(&1f32).cast();
        let algorithm = &self.chosen.algo;
        // SAFETY: the descriptors describe the four buffers, which the caller keeps allocated.
        unsafe {
            result::matmul(
                handle,
                self.operation,
                one,
                one,
                rhs as *const _,
                self.rhs,
                lhs as *const _,
                self.lhs,
                addend as *const _,
                self.sum,
                y as *mut _,
                self.sum,
                algorithm,
                workspace,
                self.workspace(),
                stream,
            )
        }
    }
}

/// The address and size of an attribute's value.
fn bytes<T>(value: &T) -> (*const c_void, usize) {
    (std::ptr::from_ref(value).cast(), size_of::<T>())
}
