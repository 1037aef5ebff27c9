//! Matrix products by cuBLAS.

use std::ffi::{c_int, c_void};

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cudarc::cublas::{result, sys};

use super::layout::Matrices;
use super::session;

/// `lhs rhs`. Half precisions are summed in float32, and float32 stays float32 (no TF32).
#[allow(unsafe_code, reason = "a call of cuBLAS")]
pub(super) fn product(lhs: CubeTensor, rhs: CubeTensor) -> CubeTensor {
    let mut shape = lhs.shape();
    let rank = shape.num_dims();
    let (m, k, n) = (shape[rank - 2], shape[rank - 1], rhs.shape()[rank - 1]);
    shape[rank - 1] = n;
    let dtype = lhs.dtype;
    let out = empty_device_contiguous_dtype(lhs.client.clone(), lhs.device.clone(), shape, dtype);
    let (a, b) = (Matrices::of(lhs), Matrices::of(rhs));
    let count = a.count();
    if m * n * count == 0 {
        return out;
    }
    // One call takes as many products as lie at an even distance on both sides.
    let together = gcd(a.leading[1].0, b.leading[1].0);
    let calls: Vec<[usize; 3]> = (0..count)
        .step_by(together)
        .map(|first| [a.offset(first), b.offset(first), first * m * n])
        .collect();
    let kind = match dtype {
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        DType::F64 => sys::cudaDataType_t::CUDA_R_64F,
        _ => sys::cudaDataType_t::CUDA_R_32F,
    };
    let transpose = |yes: bool| match yes {
        true => sys::cublasOperation_t::CUBLAS_OP_T,
        false => sys::cublasOperation_t::CUBLAS_OP_N,
    };
    let (op_a, op_b) = (transpose(a.transposed), transpose(b.transposed));
    let (ld_a, ld_b) = (a.ld as c_int, b.ld as c_int);
    let (step_a, step_b) = (a.leading[1].1 as i64, b.leading[1].1 as i64);
    let width = dtype.size();
    session::submit([&a.tensor, &b.tensor, &out], move |session, [pa, pb, pc]| {
        let handle = session.blas()?;
        let compute = match dtype {
            DType::F64 => sys::cublasComputeType_t::CUBLAS_COMPUTE_64F,
            _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let (one, zero) = ((1f32, 1f64), (0f32, 0f64));
        let factor = |number: &(f32, f64)| match dtype {
            DType::F64 => std::ptr::from_ref(&number.1).cast::<c_void>(),
            _ => std::ptr::from_ref(&number.0).cast(),
        };
        for [at_a, at_b, at_c] in calls {
            let at =
                |address: u64, offset: usize| (address + (offset * width) as u64) as *mut c_void;
            // cuBLAS counts by columns, so that it computes C' = B' A'.
            // SAFETY: sizes and steps are those of the three buffers, which `submit` holds.
            unsafe {
                result::gemm_strided_batched_ex(
                    handle,
                    op_b,
                    op_a,
                    n as c_int,
                    m as c_int,
                    k as c_int,
                    factor(&one),
                    at(pb, at_b),
                    kind,
                    ld_b,
                    step_b,
                    at(pa, at_a),
                    kind,
                    ld_a,
                    step_a,
                    factor(&zero),
                    at(pc, at_c),
                    kind,
                    n as c_int,
                    (m * n) as i64,
                    together as c_int,
                    compute,
                    sys::cublasGemmAlgo_t::CUBLAS_GEMM_DFALT,
                )
            }
            .map_err(|error| format!("cuBLAS, a product of {m}x{k}x{n}: {error:?}"))?;
        }
        Ok(())
    });
    out
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
