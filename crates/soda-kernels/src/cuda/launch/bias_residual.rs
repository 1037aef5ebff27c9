//! The bias and residual epilogue (`elementwise.cu`).

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::sizes::blocks;
use crate::cuda::stream;
use crate::cuda::support::empty_like;

/// The sum `x + bias + residual` for `x` `[.., c]` and `bias` `[k, c]`, in place of `x` if nothing else holds
/// it.
///
/// Each bias row applies to a `k`-th of the rows of `x`.
pub(crate) fn bias_residual(
    x: CubeTensor,
    bias: CubeTensor,
    residual: Option<CubeTensor>,
) -> CubeTensor {
    let (x, bias) = (into_contiguous(x), into_contiguous(bias));
    let residual = residual.map(into_contiguous);
    let y = if x.can_mut() { x.clone() } else { empty_like(&x) };
    let ([k, c], n) = (bias.shape().dims(), x.shape().num_elements());
    let name = kernel!("bias_residual", x.dtype);
    let (has_residual, residual_or_x) = (residual.is_some(), residual.as_ref().unwrap_or(&x));
    stream::submit([&x, &bias, residual_or_x, &y], move |context, [x, bias, residual, y]| {
        // A null pointer tells the kernel that there is no residual.
        let residual = if has_residual { residual } else { 0 };
        let arguments = vec![x, bias, residual, y, c as u64, (n / k) as u64, n as u64];
        context.launcher.launch(name, [blocks(n), 1], 256, 0, arguments)
    });
    y
}
