//! Products plus a matrix that stays unchanged, by cuBLASLt. cuBLAS can only add in place.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::cublaslt_plan::{Factor, Plan, PlanKey};
use super::dlopen::cublaslt_present;
use super::handles::planned;
use super::matrices::Matrices;
use super::stream;
use super::support::empty_like;

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
        let low_bits = addresses.iter().fold(MAX_ALIGNMENT, |all, address| all | address);
        let alignment = 1 << low_bits.trailing_zeros();
        let key = PlanKey { dtype, sizes: [m, k, n], lhs, rhs, alignment };
        let handles = &mut context.handles;
        let handle = handles.cublaslt()?;
        let plan = planned(&mut handles.cublaslt_plans, key, |key| Plan::new(key, handle))?;
        let workspace = handles.workspace(plan.workspace())?;
        // SAFETY: the plan is that of the four buffers, which `submit` keeps allocated.
        unsafe { plan.run(handle, addresses, workspace, context.stream.cast()) }
            .map_err(|error| format!("cuBLASLt, a product of {m}x{k}x{n}: {error:?}"))
    });
    y
}
