//! Matrix products by cuBLAS.

use std::ffi::{c_int, c_void};

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cudarc::cublas::{result, sys};

use super::matrices::Matrices;
use super::stream;

/// How a product is computed and whether it is added to the output.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Half precision is summed in float32, and float32 stays float32 (no TF32).
    Exact,
    /// As `Exact`, added to the output.
    ExactAdd,
    /// TF32 on tensor cores: float32 with 11 bits.
    Tf32,
    /// As `Tf32`, added to the output.
    Tf32Add,
}

/// The product `lhs rhs`.
pub(super) fn matmul(lhs: CubeTensor, rhs: CubeTensor) -> CubeTensor {
    let out = empty_product(&lhs, &rhs, lhs.dtype);
    multiply(lhs, rhs, &out, Mode::Exact);
    out
}

/// The product `lhs rhs` of half precision in float32.
pub(super) fn matmul_to_f32(lhs: CubeTensor, rhs: CubeTensor) -> CubeTensor {
    let out = empty_product(&lhs, &rhs, DType::F32);
    multiply(lhs, rhs, &out, Mode::Exact);
    out
}

/// Whether a product can be added to `addend` in place: it is contiguous, and nothing else holds it.
pub(super) fn adds_in_place(addend: &CubeTensor) -> bool {
    addend.can_mut() && addend.is_contiguous()
}

/// The sum `lhs rhs + addend` in place of `addend`.
pub(super) fn addmm_in_place(lhs: CubeTensor, rhs: CubeTensor, addend: CubeTensor) -> CubeTensor {
    multiply(lhs, rhs, &addend, Mode::ExactAdd);
    addend
}

/// The product of two matrices that are each split into a high and a low TF32 part, without the product of
/// the low parts.
pub(super) fn matmul_split(
    [left, left_low]: [CubeTensor; 2],
    [right, right_low]: [CubeTensor; 2],
) -> CubeTensor {
    let out = empty_product(&left, &right, left.dtype);
    // The small products come first, which loses fewer digits.
    multiply(left.clone(), right_low, &out, Mode::Tf32);
    multiply(left_low, right.clone(), &out, Mode::Tf32Add);
    multiply(left, right, &out, Mode::Tf32Add);
    out
}

/// An uninitialized tensor for `lhs rhs`.
fn empty_product(lhs: &CubeTensor, rhs: &CubeTensor, dtype: DType) -> CubeTensor {
    let mut shape = lhs.shape();
    let last = shape.num_dims() - 1;
    shape[last] = rhs.shape()[last];
    empty_device_contiguous_dtype(lhs.client.clone(), lhs.device.clone(), shape, dtype)
}

/// Computes `lhs rhs` into `out`.
#[allow(unsafe_code, reason = "a call of cuBLAS")]
fn multiply(lhs: CubeTensor, rhs: CubeTensor, out: &CubeTensor, mode: Mode) {
    let shape = lhs.shape();
    let rank = shape.num_dims();
    let (m, k, n) = (shape[rank - 2], shape[rank - 1], rhs.shape()[rank - 1]);
    let dtype = lhs.dtype;
    let (a, b) = (Matrices::of(lhs), Matrices::of(rhs));
    let count = a.count();
    if m * n * count == 0 {
        return;
    }
    // One call computes as many products as have a constant stride on both sides.
    let per_call = gcd(a.batch[1].0, b.batch[1].0);
    let calls: Vec<[usize; 3]> = (0..count)
        .step_by(per_call)
        .map(|first| [a.offset(first), b.offset(first), first * m * n])
        .collect();
    let kind_of = |dtype| match dtype {
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        DType::F64 => sys::cudaDataType_t::CUDA_R_64F,
        _ => sys::cudaDataType_t::CUDA_R_32F,
    };
    let (kind, kind_out) = (kind_of(dtype), kind_of(out.dtype));
    let transpose = |yes: bool| match yes {
        true => sys::cublasOperation_t::CUBLAS_OP_T,
        false => sys::cublasOperation_t::CUBLAS_OP_N,
    };
    let (op_a, op_b) = (transpose(a.transposed), transpose(b.transposed));
    let (ld_a, ld_b) = (a.ld as c_int, b.ld as c_int);
    let (stride_a, stride_b) = (a.batch[1].1 as i64, b.batch[1].1 as i64);
    let (width, width_out) = (dtype.size(), out.dtype.size());
    stream::submit([&a.tensor, &b.tensor, out], move |context, [pa, pb, pc]| {
        let handle = context.handles.cublas()?;
        let compute = match (dtype, mode) {
            (DType::F64, _) => sys::cublasComputeType_t::CUBLAS_COMPUTE_64F,
            (_, Mode::Exact | Mode::ExactAdd) => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        };
        let beta = if matches!(mode, Mode::ExactAdd | Mode::Tf32Add) { 1.0 } else { 0.0 };
        let (alpha, beta) = ((1f32, 1f64), (beta, f64::from(beta)));
        let factor = |number: &(f32, f64)| match dtype {
            DType::F64 => std::ptr::from_ref(&number.1).cast::<c_void>(),
            _ => std::ptr::from_ref(&number.0).cast(),
        };
        for [at_a, at_b, at_c] in calls {
            let at = |address: u64, bytes: usize| (address + bytes as u64) as *mut c_void;
            // cuBLAS is column-major, so the call computes C' = B' A'.
            // SAFETY: sizes and strides are those of the three buffers, which `submit` keeps allocated.
            unsafe {
                result::gemm_strided_batched_ex(
                    handle,
                    op_b,
                    op_a,
                    n as c_int,
                    m as c_int,
                    k as c_int,
                    factor(&alpha),
                    at(pb, at_b * width),
                    kind,
                    ld_b,
                    stride_b,
                    at(pa, at_a * width),
                    kind,
                    ld_a,
                    stride_a,
                    factor(&beta),
                    at(pc, at_c * width_out),
                    kind_out,
                    n as c_int,
                    (m * n) as i64,
                    per_call as c_int,
                    compute,
                    sys::cublasGemmAlgo_t::CUBLAS_GEMM_DFALT,
                )
            }
            .map_err(|error| format!("cuBLAS, a product of {m}x{k}x{n}: {error:?}"))?;
        }
        Ok(())
    });
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
