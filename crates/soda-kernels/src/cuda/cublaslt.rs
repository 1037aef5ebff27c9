//! Products that cuBLAS does not have, by cuBLASLt: plus a matrix that stays unchanged, and of codes in E4M3
//! with scales.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::cublaslt_plan::{Factor, Plan, PlanKey, Product};
use super::dlopen::{cublaslt_present, cublaslt_version};
use super::handles::planned;
use super::matrices::Matrices;
use super::stream;
use super::support::{empty, empty_like};

/// An alignment beyond this number of bytes makes no difference.
const MAX_ALIGNMENT: u64 = 256;

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

/// The first version of cuBLASLt with a scale for each row and each column of a product.
const SCALED_PRODUCTS: usize = 120_900;

/// Whether this machine's cuBLASLt has [`scaled_product`].
pub(super) fn has_scaled_products() -> bool {
    cublaslt_version().is_some_and(|version| version >= SCALED_PRODUCTS)
}

/// A matrix `diag(scales) codes` of codes in E4M3: contiguous tensors of one byte a code, and of float32.
pub(super) struct Scaled {
    pub(super) codes: CubeTensor,
    pub(super) scales: CubeTensor,
}

/// The product `lhs rhs'` in `dtype`, for `lhs` `[m, k]` and `rhs` `[n, k]`. `k` and `n` are multiples of 16.
#[allow(unsafe_code, reason = "a call of cuBLASLt")]
pub(super) fn scaled_product(lhs: Scaled, rhs: Scaled, n: usize, dtype: DType) -> CubeTensor {
    let [m, k] = lhs.codes.shape().dims();
    let y = empty(&lhs.scales, vec![m, n], dtype);
    // A row of codes is what the sum runs over, in both factors.
    let [lhs_factor, rhs_factor] = [false, true].map(|transposed| Factor { transposed, ld: k });
    let tensors = [&lhs.codes, &rhs.codes, &y, &lhs.scales, &rhs.scales];
    stream::submit(tensors, move |context, [lhs, rhs, y, lhs_scales, rhs_scales]| {
        let product = Product::Scaled(dtype);
        let (sizes, alignment) = ([m, k, n], alignment(&[lhs, rhs, y]));
        let key = PlanKey { product, sizes, lhs: lhs_factor, rhs: rhs_factor, alignment };
        let handles = &mut context.handles;
        let handle = handles.cublaslt()?;
        let plan = planned(&mut handles.cublaslt_plans, key, |key| Plan::new(key, handle))?;
        let workspace = handles.workspace(plan.workspace())?;
        let (buffers, scales) = ([lhs, rhs, y], [lhs_scales, rhs_scales]);
        // SAFETY: the plan is that of the buffers, which `submit` keeps allocated.
        unsafe { plan.multiply_scaled(handle, buffers, scales, workspace, context.stream.cast()) }
            .map_err(|error| format!("cuBLASLt, a product of {m}x{k}x{n} in E4M3: {error:?}"))
    });
    y
}

/// The alignment of all addresses in bytes, as far as it matters.
fn alignment(addresses: &[u64]) -> u32 {
    let low_bits = addresses.iter().fold(MAX_ALIGNMENT, |all, address| all | address);
    1 << low_bits.trailing_zeros()
}
