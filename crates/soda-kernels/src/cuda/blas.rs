//! Matrix products by cuBLAS.

use std::ffi::{c_int, c_void};

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cudarc::cublas::{result, sys};

use super::layout::Matrices;
use super::session;

/// How a product is computed, and where it goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Half precisions are summed in float32, and float32 stays float32 (no TF32).
    Plain,
    /// The same, added to what is there.
    More,
    /// float32 of 11 bits on tensor cores.
    Halves,
    /// The same, added to what is there.
    MoreHalves,
}

/// `lhs rhs`.
pub(super) fn product(lhs: CubeTensor, rhs: CubeTensor) -> CubeTensor {
    let out = room(&lhs, &rhs, lhs.dtype);
    multiply(lhs, rhs, &out, Way::Plain);
    out
}

/// `lhs rhs` of half precision in float32.
pub(super) fn wide_product(lhs: CubeTensor, rhs: CubeTensor) -> CubeTensor {
    let out = room(&lhs, &rhs, DType::F32);
    multiply(lhs, rhs, &out, Way::Plain);
    out
}

/// Whether a product can be added in the place of `to`: it lies row by row, and nobody else needs it.
pub(super) fn adds_in_place(to: &CubeTensor) -> bool {
    to.can_mut() && to.is_contiguous()
}

/// `lhs rhs + to` in the place of `to`.
pub(super) fn product_onto(lhs: CubeTensor, rhs: CubeTensor, to: CubeTensor) -> CubeTensor {
    multiply(lhs, rhs, &to, Way::More);
    to
}

/// `lhs rhs` for sums of two numbers of 11 bits each, without the product of the smaller ones.
pub(super) fn product_of_halves(
    [left, left_rest]: [CubeTensor; 2],
    [right, right_rest]: [CubeTensor; 2],
) -> CubeTensor {
    let out = room(&left, &right, left.dtype);
    // The small ones first, which lose less that way.
    multiply(left.clone(), right_rest, &out, Way::Halves);
    multiply(left_rest, right.clone(), &out, Way::MoreHalves);
    multiply(left, right, &out, Way::MoreHalves);
    out
}

/// A tensor for `lhs rhs`.
fn room(lhs: &CubeTensor, rhs: &CubeTensor, dtype: DType) -> CubeTensor {
    let mut shape = lhs.shape();
    let last = shape.num_dims() - 1;
    shape[last] = rhs.shape()[last];
    empty_device_contiguous_dtype(lhs.client.clone(), lhs.device.clone(), shape, dtype)
}

#[allow(unsafe_code, reason = "a call of cuBLAS")]
fn multiply(lhs: CubeTensor, rhs: CubeTensor, out: &CubeTensor, way: Way) {
    let shape = lhs.shape();
    let rank = shape.num_dims();
    let (m, k, n) = (shape[rank - 2], shape[rank - 1], rhs.shape()[rank - 1]);
    let dtype = lhs.dtype;
    let (a, b) = (Matrices::of(lhs), Matrices::of(rhs));
    let count = a.count();
    if m * n * count == 0 {
        return;
    }
    // One call takes as many products as lie at an even distance on both sides.
    let together = gcd(a.leading[1].0, b.leading[1].0);
    let calls: Vec<[usize; 3]> = (0..count)
        .step_by(together)
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
    let (step_a, step_b) = (a.leading[1].1 as i64, b.leading[1].1 as i64);
    let (width, width_out) = (dtype.size(), out.dtype.size());
    session::submit([&a.tensor, &b.tensor, out], move |session, [pa, pb, pc]| {
        let handle = session.blas()?;
        let compute = match (dtype, way) {
            (DType::F64, _) => sys::cublasComputeType_t::CUBLAS_COMPUTE_64F,
            (_, Way::Plain | Way::More) => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        };
        let kept = if matches!(way, Way::More | Way::MoreHalves) { 1.0 } else { 0.0 };
        let (one, kept) = ((1f32, 1f64), (kept, f64::from(kept)));
        let factor = |number: &(f32, f64)| match dtype {
            DType::F64 => std::ptr::from_ref(&number.1).cast::<c_void>(),
            _ => std::ptr::from_ref(&number.0).cast(),
        };
        for [at_a, at_b, at_c] in calls {
            let at = |address: u64, bytes: usize| (address + bytes as u64) as *mut c_void;
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
                    at(pb, at_b * width),
                    kind,
                    ld_b,
                    step_b,
                    at(pa, at_a * width),
                    kind,
                    ld_a,
                    step_a,
                    factor(&kept),
                    at(pc, at_c * width_out),
                    kind_out,
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
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
