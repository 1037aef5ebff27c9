//! Products that cuBLAS does not have, by cuBLASLt: plus a matrix that stays unchanged, and of codes in E4M3
//! with scales.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::cublaslt_plan::{Factor, MAX_ALIGNMENT, Plan, PlanKey, Product};
use super::dlopen::cublaslt_present;
use super::handles::planned;
use super::matrices::Matrices;
use super::stream;
use super::support::empty_like;

/// Whether [`addmm`] takes these tensors: matrices, and a contiguous `addend`. The caller checks that dtypes
/// are equal.
pub(super) fn takes([lhs, rhs, addend]: [&CubeTensor; 3]) -> bool {
    let supported = matches!(lhs.dtype, DType::BF16 | DType::F16 | DType::F32);
    let matrices = [lhs, rhs, addend].iter().all(|x| x.rank() == 2 && x.shape().num_elements() > 0);
    supported && matrices && addend.is_contiguous() && cublaslt_present()
}

/// The sum `lhs rhs + addend` in a new tensor.
#[allow(unsafe_code, reason = "a call of cuBLASLt")]
pub(super) fn addmm(lhs: CubeTensor, rhs: CubeTensor, addend: &CubeTensor) -> CubeTensor {
    let ([m, k], [_, n]) = (lhs.shape().dims(), rhs.shape().dims());
    let (dtype, y) = (lhs.dtype, empty_like(addend));
    let (a, b) = (Matrices::of(lhs), Matrices::of(rhs));
    let factor = |x: &Matrices| Factor { transposed: x.transposed, ld: x.ld };
    let (lhs, rhs) = (factor(&a), factor(&b));
    stream::submit([&a.tensor, &b.tensor, addend, &y], move |context, addresses| {
        let alignment = alignment(&addresses);
        let key = PlanKey { product: Product::Sum(dtype), sizes: [m, k, n], lhs, rhs, alignment };
        let handles = &mut context.handles;
        let handle = handles.cublaslt()?;
        let plan = planned(&mut handles.cublaslt_plans, key, |key| Plan::new(key, handle))?;
        let workspace = handles.workspace(plan.workspace())?;
        // SAFETY: the plan is that of the four buffers, which `submit` keeps allocated.
        unsafe { plan.add(handle, addresses, workspace, context.stream.cast()) }
            .map_err(|error| format!("cuBLASLt, a product of {m}x{k}x{n}: {error:?}"))
    });
    y
}

/// A matrix `diag(scales) codes` of codes in E4M3: contiguous tensors of one byte a code, and of float32.
pub(super) struct Scaled {
    pub(super) codes: CubeTensor,
    pub(super) scales: CubeTensor,
}

/// The product `lhs rhs'` of codes in E4M3, for `lhs` `[m, k]` and `rhs` `[n, k]`, in `y` `[m, n]`. `k` and
/// `n` are multiples of 16. The product has the scales of both factors if `with_scales`.
///
/// `product_dtype` is the dtype that is written, of as many bits as that of `y`.
#[allow(unsafe_code, reason = "a call of cuBLASLt")]
pub(super) fn product_of_codes(
    lhs: &Scaled,
    rhs: &Scaled,
    y: &CubeTensor,
    product_dtype: DType,
    with_scales: bool,
) {
    let ([m, n], [_, k]) = (y.shape().dims(), lhs.codes.shape().dims::<2>());
    // A row of codes is what the sum runs over, in both factors.
    let [lhs_factor, rhs_factor] = [false, true].map(|transposed| Factor { transposed, ld: k });
    let tensors = [&lhs.codes, &rhs.codes, y, &lhs.scales, &rhs.scales];
    stream::submit(tensors, move |context, [lhs, rhs, y, lhs_scales, rhs_scales]| {
        let product = match with_scales {
            true => Product::Scaled(product_dtype),
            false => Product::Codes(product_dtype),
        };
        let (sizes, buffers) = ([m, k, n], [lhs, rhs, y]);
        let alignment = alignment(&buffers);
        let key = PlanKey { product, sizes, lhs: lhs_factor, rhs: rhs_factor, alignment };
        let handles = &mut context.handles;
        let handle = handles.cublaslt()?;
        let plan = planned(&mut handles.cublaslt_plans, key, |key| Plan::new(key, handle))?;
        let workspace = handles.workspace(plan.workspace())?;
        let (scales, stream) = ([lhs_scales, rhs_scales], context.stream.cast());
        // SAFETY: the plan is that of the buffers, which `submit` keeps allocated.
        let result = unsafe {
            match with_scales {
                true => plan.multiply_scaled(handle, buffers, scales, workspace, stream),
                false => plan.multiply(handle, buffers, workspace, stream),
            }
        };
        result.map_err(|error| format!("cuBLASLt, a product of {m}x{k}x{n} in E4M3: {error:?}"))
    });
}

/// The alignment of all addresses in bytes, as far as it matters.
fn alignment(addresses: &[u64]) -> u32 {
    let low_bits = addresses.iter().fold(MAX_ALIGNMENT, |all, address| all | address);
    1 << low_bits.trailing_zeros()
}
