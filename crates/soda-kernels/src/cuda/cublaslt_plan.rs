//! The choice of a cuBLASLt algorithm for a product.

use std::ffi::{c_int, c_void};

use burn::tensor::DType;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

/// The largest workspace of an algorithm in bytes.
const MAX_WORKSPACE: usize = 32 << 20;

/// Attributes of a product since CUDA 12.8, which bindings of earlier versions do not name:
/// `CUBLASLT_MATMUL_DESC_A_SCALE_MODE` and `CUBLASLT_MATMUL_DESC_B_SCALE_MODE`.
const DESC_A_SCALE_MODE: u32 = 31;
const DESC_B_SCALE_MODE: u32 = 32;
/// `CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F` of CUDA 12.9: a scale for each row or column of the output.
const SCALE_OUTER_VECTOR: i32 = 3;

/// An alignment beyond this number of bytes makes no difference.
pub(super) const MAX_ALIGNMENT: u64 = 256;

/// How a factor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Factor {
    pub(super) transposed: bool,
    /// The leading dimension.
    pub(super) ld: usize,
}

/// What is computed from two factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Product {
    /// The sum of a product and a matrix, all in one dtype.
    Sum(DType),
    /// The product of matrices in E4M3, each with a scale for each of its rows, in a dtype.
    Scaled(DType),
    /// The product of matrices in E4M3 without scales, in a dtype.
    Codes(DType),
}

/// The properties of a product that cuBLASLt's choice of an algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PlanKey {
    pub(super) product: Product,
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
    output: sys::cublasLtMatrixLayout_t,
    chosen: sys::cublasLtMatmulHeuristicResult_t,
}

#[allow(unsafe_code, reason = "calls of cuBLASLt")]
impl Plan {
    pub(super) fn new(key: &PlanKey, handle: sys::cublasLtHandle_t) -> Result<Self, CublasError> {
        let [m, k, n] = key.sizes.map(|size| size as u64);
        let kind_of = |dtype| match dtype {
            DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
            DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
            _ => sys::cudaDataType_t::CUDA_R_32F,
        };
        let (kind, kind_out) = match key.product {
            Product::Sum(dtype) => (kind_of(dtype), kind_of(dtype)),
            Product::Scaled(dtype) | Product::Codes(dtype) => {
                (sys::cudaDataType_t::CUDA_R_8F_E4M3, kind_of(dtype))
            }
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
        let output = result::create_matrix_layout(kind_out, n, m, n as i64)?;
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
        if let Product::Scaled(_) = key.product {
            set_outer_vector_scales(operation)?;
            // The choice of an algorithm asks for addresses, and reads nothing there.
            set_scales(operation, [MAX_ALIGNMENT; 2])?;
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
            let (sum, wish) = (output, preference);
            let chosen =
                result::get_matmul_algo_heuristic(handle, operation, rhs, lhs, sum, sum, wish);
            result::destroy_matmul_pref(preference)?;
            chosen?
        };
        Ok(Self { operation, lhs, rhs, output, chosen })
    }

    /// The bytes of workspace that the algorithm needs.
    pub(super) fn workspace(&self) -> usize {
        self.chosen.workspaceSize
    }

    /// Computes `y = lhs rhs + addend` on `stream` for [`Product::Sum`].
    ///
    /// # Safety
    /// The addresses are those of live buffers of the plan's sizes, and the workspace has [`Plan::workspace`]
    /// bytes.
    pub(super) unsafe fn add(
        &self,
        handle: sys::cublasLtHandle_t,
        buffers: [u64; 4],
        workspace: *mut c_void,
        stream: sys::cudaStream_t,
    ) -> Result<(), CublasError> {
        // SAFETY: the promise of the caller.
        unsafe { self.run(handle, buffers, 1.0, workspace, stream) }
    }

    /// Computes `y = diag(s) lhs (diag(t) rhs')'` on `stream` for [`Product::Scaled`], with the scales `s`
    /// and `t`.
    ///
    /// # Safety
    /// As [`Plan::add`].
    pub(super) unsafe fn multiply_scaled(
        &self,
        handle: sys::cublasLtHandle_t,
        [lhs, rhs, y]: [u64; 3],
        [lhs_scales, rhs_scales]: [u64; 2],
        workspace: *mut c_void,
        stream: sys::cudaStream_t,
    ) -> Result<(), CublasError> {
        set_scales(self.operation, [lhs_scales, rhs_scales])?;
        // SAFETY: the promise of the caller.
        unsafe { self.run(handle, [lhs, rhs, y, y], 0.0, workspace, stream) }
    }

    /// Computes `y = lhs rhs` on `stream` for [`Product::Codes`].
    ///
    /// # Safety
    /// As [`Plan::add`].
    pub(super) unsafe fn multiply(
        &self,
        handle: sys::cublasLtHandle_t,
        [lhs, rhs, y]: [u64; 3],
        workspace: *mut c_void,
        stream: sys::cudaStream_t,
    ) -> Result<(), CublasError> {
        // SAFETY: the promise of the caller.
        unsafe { self.run(handle, [lhs, rhs, y, y], 0.0, workspace, stream) }
    }

    /// Computes `y = lhs rhs + factor addend`.
    ///
    /// # Safety
    /// As [`Plan::add`].
    unsafe fn run(
        &self,
        handle: sys::cublasLtHandle_t,
        [lhs, rhs, addend, y]: [u64; 4],
        factor: f32,
        workspace: *mut c_void,
        stream: sys::cudaStream_t,
    ) -> Result<(), CublasError> {
        let one = std::ptr::from_ref(&1f32).cast();
        let factor = std::ptr::from_ref(&factor).cast();
        let algorithm = &self.chosen.algo;
        // SAFETY: the descriptors describe the four buffers, which the caller keeps allocated.
        unsafe {
            result::matmul(
                handle,
                self.operation,
                one,
                factor,
                rhs as *const _,
                self.rhs,
                lhs as *const _,
                self.lhs,
                addend as *const _,
                self.output,
                y as *mut _,
                self.output,
                algorithm,
                workspace,
                self.workspace(),
                stream,
            )
        }
    }
}

/// Gives both factors of a product a scale for each row or column of the output.
#[allow(unsafe_code, reason = "calls of cuBLASLt")]
fn set_outer_vector_scales(operation: sys::cublasLtMatmulDesc_t) -> Result<(), CublasError> {
    // The function with the attribute as a number, since bindings before CUDA 12.8 have no name for it.
    type Set = unsafe extern "C" fn(
        sys::cublasLtMatmulDesc_t,
        u32,
        *const c_void,
        usize,
    ) -> sys::cublasStatus_t;
    let (at, size) = bytes(&SCALE_OUTER_VECTOR);
    // SAFETY: the library is there, since it created `operation`. The type is that of `cublasLt.h`, and the
    // attributes are of type `int32_t`.
    unsafe {
        let set = sys::culib().get::<Set>(b"cublasLtMatmulDescSetAttribute");
        let Ok(set) = set else {
            return Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
        };
        for attribute in [DESC_A_SCALE_MODE, DESC_B_SCALE_MODE] {
            set(operation, attribute, at, size).result()?;
        }
    }
    Ok(())
}

/// Gives the addresses of the scales of both factors.
#[allow(unsafe_code, reason = "a call of cuBLASLt")]
fn set_scales(
    operation: sys::cublasLtMatmulDesc_t,
    [lhs, rhs]: [u64; 2],
) -> Result<(), CublasError> {
    use sys::cublasLtMatmulDescAttributes_t as Of;
    for (attribute, scales) in [
        (Of::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, rhs),
        (Of::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, lhs),
    ] {
        let (at, size) = bytes(&scales);
        // SAFETY: the attributes are addresses, and a product reads them when it is called.
        unsafe { result::set_matmul_desc_attribute(operation, attribute, at, size)? };
    }
    Ok(())
}

/// The address and size of an attribute's value.
fn bytes<T>(value: &T) -> (*const c_void, usize) {
    (std::ptr::from_ref(value).cast(), size_of::<T>())
}
