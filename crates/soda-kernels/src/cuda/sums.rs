//! Products added to a matrix that stays, by cuBLASLt: cuBLAS itself adds in place alone.

use std::ffi::{c_int, c_void};

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use super::launch::like;
use super::layout::Matrices;
use super::libraries::{self, planned};
use super::session;

/// Scratch memory that an algorithm may want.
const WORKSPACE: usize = 32 << 20;
/// Addresses that are multiples of this are as good as any.
const ALIGNED: u64 = 256;

/// A factor as it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Factor {
    transposed: bool,
    ld: usize,
}

/// A product, up to what cuBLASLt's choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PlanKey {
    dtype: DType,
    /// `[m, k, n]`
    sizes: [usize; 3],
    lhs: Factor,
    rhs: Factor,
    /// Bytes of which all addresses are multiples.
    alignment: u32,
}

/// Descriptors and the algorithm of one product.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    lhs: sys::cublasLtMatrixLayout_t,
    rhs: sys::cublasLtMatrixLayout_t,
    sum: sys::cublasLtMatrixLayout_t,
    chosen: sys::cublasLtMatmulHeuristicResult_t,
}

/// Whether [`sum`] takes these: matrices of one type, and `to` row by row.
pub(super) fn takes([lhs, rhs, to]: [&CubeTensor; 3]) -> bool {
    let single = matches!(lhs.dtype, DType::BF16 | DType::F16 | DType::F32);
    let matrices = [lhs, rhs, to].iter().all(|x| x.rank() == 2 && x.shape().num_elements() > 0);
    single && matrices && to.is_contiguous() && libraries::lt_present()
}

/// `lhs rhs + to`.
pub(super) fn sum(lhs: CubeTensor, rhs: CubeTensor, to: &CubeTensor) -> CubeTensor {
    let ([m, k], [_, n]) = (lhs.shape().dims(), rhs.shape().dims());
    let (dtype, y) = (lhs.dtype, like(to));
    let (a, b) = (Matrices::of(lhs), Matrices::of(rhs));
    let factor = |x: &Matrices| Factor { transposed: x.transposed, ld: x.ld };
    let (lhs, rhs) = (factor(&a), factor(&b));
    session::submit([&a.tensor, &b.tensor, to, &y], move |session, addresses| {
        let shared = addresses.iter().fold(ALIGNED, |all, address| all | address);
        let alignment = 1 << shared.trailing_zeros();
        let key = PlanKey { dtype, sizes: [m, k, n], lhs, rhs, alignment };
        let lt = session.lt()?;
        let plan = planned(&mut session.sums, key, |key| Plan::new(key, lt))?;
        let bytes = plan.chosen.workspaceSize;
        let scratch = session.workspace(bytes)?;
        plan.run(lt, addresses, (scratch, bytes), session.stream.cast())
            .map_err(|error| format!("cuBLASLt, a product of {m}x{k}x{n}: {error:?}"))
    });
    y
}

#[allow(unsafe_code, reason = "calls of cuBLASLt")]
impl Plan {
    fn new(key: &PlanKey, lt: sys::cublasLtHandle_t) -> Result<Self, CublasError> {
        let [m, k, n] = key.sizes.map(|size| size as u64);
        let kind = match key.dtype {
            DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
            DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
            _ => sys::cudaDataType_t::CUDA_R_32F,
        };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let operation = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F)?;
        // cuBLASLt counts by columns too: it computes Y' = B' A' + C', of which what lies transposed is not.
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
            // SAFETY: the attribute is of this type.
            unsafe { result::set_matmul_desc_attribute(operation, attribute, at, size)? };
        }
        let (at, size) = bytes(&WORKSPACE);
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
        // SAFETY: all descriptors were just made; the preference is not needed after.
        let chosen = unsafe {
            let (sum, wish) = (sum, preference);
            let chosen = result::get_matmul_algo_heuristic(lt, operation, rhs, lhs, sum, sum, wish);
            result::destroy_matmul_pref(preference)?;
            chosen?
        };
        Ok(Self { operation, lhs, rhs, sum, chosen })
    }

    fn run(
        &self,
        lt: sys::cublasLtHandle_t,
        [lhs, rhs, to, y]: [u64; 4],
        (scratch, bytes): (*mut c_void, usize),
        stream: sys::cudaStream_t,
    ) -> Result<(), CublasError> {
        let one = std::ptr::from_ref(&1f32).cast();
        let algorithm = &self.chosen.algo;
        // SAFETY: the descriptors are those of the four buffers, which `submit` holds.
        unsafe {
            result::matmul(
                lt,
                self.operation,
                one,
                one,
                rhs as *const _,
                self.rhs,
                lhs as *const _,
                self.lhs,
                to as *const _,
                self.sum,
                y as *mut _,
                self.sum,
                algorithm,
                scratch,
                bytes,
                stream,
            )
        }
    }
}

/// An attribute's value, as cuBLASLt takes it.
fn bytes<T>(value: &T) -> (*const c_void, usize) {
    (std::ptr::from_ref(value).cast(), size_of::<T>())
}
