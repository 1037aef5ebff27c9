//! Softmax over rows and its gradient (`softmax.cu`).

use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::rows::Rows;
use crate::cuda::stream;
use crate::cuda::support::empty_like;

/// Softmax over the first `keys` entries of the last axis. The others become 0.
pub(crate) fn masked_softmax(x: CubeTensor, keys: usize) -> CubeTensor {
    let x = into_contiguous(x);
    let (y, name) = (empty_like(&x), kernel!("softmax", x.dtype));
    let rows = Rows::of(&x);
    stream::submit([&x, &y], move |context, [x, y]| {
        let arguments = vec![x, y, rows.length as u64, keys as u64];
        context.launcher.launch(name, [rows.count, 1], rows.threads, 0, arguments)
    });
    y
}

/// The gradient of softmax from its value `p`.
pub(crate) fn gradient(p: CubeTensor, dp: CubeTensor) -> CubeTensor {
    let (p, dp) = (into_contiguous(p), into_contiguous(dp));
    let (dx, name) = (empty_like(&p), kernel!("softmax_gradient", p.dtype));
    let rows = Rows::of(&p);
    stream::submit([&p, &dp, &dx], move |context, [p, dp, dx]| {
        let arguments = vec![p, dp, dx, rows.length as u64];
        context.launcher.launch(name, [rows.count, 1], rows.threads, 0, arguments)
    });
    dx
}
