//! Layer norm and its gradient (`layer_norm.cu`).

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::rows::{Rows, WARPS, fits_a_warp};
use super::sizes::float_argument;
use crate::cuda::stream;
use crate::cuda::support::empty_like;

/// Layer norm over the last axis, with scale and shift `[c]` or `[b, c]`.
pub(crate) fn layer_norm(
    x: CubeTensor,
    gamma: CubeTensor,
    beta: CubeTensor,
    eps: f32,
) -> CubeTensor {
    let [x, gamma, beta] = [x, gamma, beta].map(into_contiguous);
    let (y, in_blocks) = (empty_like(&x), kernel!("layer_norm", x.dtype));
    let in_warps = kernel!("layer_norm_in_warps", x.dtype);
    let (rows, width) = (Rows::of(&x), x.dtype.size());
    let sizes = [rows.length as u64, rows_of_a_scale(rows, &gamma), float_argument(eps)];
    stream::submit([&x, &gamma, &beta, &y], move |context, [x, gamma, beta, y]| {
        let mut arguments: Vec<u64> = [x, gamma, beta, y].into_iter().chain(sizes).collect();
        if fits_a_warp(rows.length, width, x | gamma | beta | y) {
            arguments.push(rows.count as u64);
            let grid = [rows.count.div_ceil(WARPS), 1];
            return context.launcher.launch(in_warps, grid, 32 * WARPS, 0, arguments);
        }
        context.launcher.launch(in_blocks, [rows.count, 1], rows.threads, 0, arguments)
    });
    y
}

/// The gradient of layer norm by `x`.
pub(crate) fn gradient(x: CubeTensor, dy: CubeTensor, gamma: CubeTensor, eps: f32) -> CubeTensor {
    let [x, dy, gamma] = [x, dy, gamma].map(into_contiguous);
    let (dx, in_blocks) = (empty_like(&x), kernel!("layer_norm_gradient", x.dtype));
    let in_warps = kernel!("layer_norm_gradient_in_warps", x.dtype);
    let (rows, width) = (Rows::of(&x), x.dtype.size());
    let sizes = [rows.length as u64, rows_of_a_scale(rows, &gamma), float_argument(eps)];
    stream::submit([&x, &dy, &gamma, &dx], move |context, [x, dy, gamma, dx]| {
        let mut arguments: Vec<u64> = [x, dy, gamma, dx].into_iter().chain(sizes).collect();
        if fits_a_warp(rows.length, width, x | dy | gamma | dx) {
            arguments.push(rows.count as u64);
            let grid = [rows.count.div_ceil(WARPS), 1];
            return context.launcher.launch(in_warps, grid, 32 * WARPS, 0, arguments);
        }
        context.launcher.launch(in_blocks, [rows.count, 1], rows.threads, 0, arguments)
    });
    dx
}

/// The number of rows with one scale.
fn rows_of_a_scale(rows: Rows, gamma: &CubeTensor) -> u64 {
    let scales = gamma.shape().num_elements() / rows.length.max(1);
    (rows.count / scales.max(1)).max(1) as u64
}
