//! GEGLU and its gradient (`geglu.cu`).

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::sizes::blocks;
use crate::cuda::stream;
use crate::cuda::support::{empty, empty_like};

/// Computes `a gelu(b)` for rows `(a, b)`, after the bias is added to the rows.
pub(crate) fn geglu(x: CubeTensor, bias: Option<CubeTensor>) -> CubeTensor {
    let (x, bias) = (into_contiguous(x), bias.map(into_contiguous));
    let mut shape = x.shape().to_vec();
    let last = shape.len() - 1;
    shape[last] /= 2;
    let (c, n) = (shape[last], shape.iter().product::<usize>());
    let (y, name) = (empty(&x, shape, x.dtype), kernel!("geglu", x.dtype));
    let biased = bias.is_some();
    stream::submit([&x, bias.as_ref().unwrap_or(&x), &y], move |context, [x, bias, y]| {
        // A null pointer tells the kernel that there is no bias.
        let bias = if biased { bias } else { 0 };
        let arguments = vec![x, bias, y, c as u64, n as u64];
        context.launcher.launch(name, [blocks(n), 1], 256, 0, arguments)
    });
    y
}

/// The gradient of [`geglu`] by `x`.
pub(crate) fn gradient(x: CubeTensor, bias: Option<CubeTensor>, dy: CubeTensor) -> CubeTensor {
    let (x, dy, bias) = (into_contiguous(x), into_contiguous(dy), bias.map(into_contiguous));
    let shape = dy.shape();
    let (c, n) = (shape[shape.num_dims() - 1], shape.num_elements());
    let (dx, name) = (empty_like(&x), kernel!("geglu_gradient", x.dtype));
    let (biased, bias_or_x) = (bias.is_some(), bias.as_ref().unwrap_or(&x));
    stream::submit([&x, bias_or_x, &dy, &dx], move |context, [x, bias, dy, dx]| {
        let bias = if biased { bias } else { 0 };
        let arguments = vec![x, bias, dy, dx, c as u64, n as u64];
        context.launcher.launch(name, [blocks(n), 1], 256, 0, arguments)
    });
    dx
}
