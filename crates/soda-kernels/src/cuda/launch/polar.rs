//! Steps of the polar iteration on tensor cores: a float32 product as three TF32 products (`tf32_split.cu`).

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::sizes::{blocks, float_argument};
use crate::cuda::support::{Cube, empty_like, kernels_take};
use crate::cuda::{cublas, dlopen, nvrtc, stream};

/// The largest number of matrices of a launch: the limit of the second axis of a grid.
const MAX_MATRICES: usize = 65_535;
/// The first compute capability with TF32 tensor cores.
const CAPABILITY: (i32, i32) = (8, 0);

/// The high and the low TF32 part of a batch of matrices.
pub(crate) type Split = [CubeTensor; 2];

/// Whether the steps take the iterate `[b, m, n]`.
pub(crate) fn takes(x: &CubeTensor) -> bool {
    let fits = x.shape()[0] <= MAX_MATRICES && x.shape().num_elements() > 0;
    let capable = nvrtc::compute_capability().is_some_and(|found| found >= CAPABILITY);
    fits && capable && x.dtype == DType::F32 && kernels_take(x) && dlopen::cublas_present()
}

/// The next iterate `X (a I + b G + c G²)` from the split `X` and `G = XᵀX` `[b, n, n]`: split, whole, and
/// its Gram matrices.
pub(crate) fn step(
    x: Split,
    gram: CubeTensor,
    [a, b, c]: [f64; 3],
) -> (Split, CubeTensor, CubeTensor) {
    let (gram, inner) = split_inner(gram, b, c);
    let outer = split(cublas::matmul_split(gram, inner), a);
    let x = cublas::matmul_split(x, outer);
    let next = split(x.clone(), 0.0);
    let gram = gram_of(&next);
    (next, x, gram)
}

/// `XᵀX`.
fn gram_of(x: &Split) -> CubeTensor {
    let transposed = x.clone().map(|part| Cube::float_swap_dims(part, 1, 2));
    cublas::matmul_split(transposed, x.clone())
}

/// Splits `X + d I`. `d` is 0 if the matrices `X` `[b, m, n]` are not square.
pub(crate) fn split(x: CubeTensor, d: f64) -> Split {
    let x = into_contiguous(x);
    let [count, rows, n] = x.shape().dims();
    let (high, low) = (empty_like(&x), empty_like(&x));
    stream::submit([&x, &high, &low], move |context, [x, high, low]| {
        let size = rows * n;
        let arguments = vec![x, high, low, size as u64, n as u64, float_argument(d as f32)];
        context.launcher.launch(entry!("tf32_split"), [blocks(size), count], 256, 0, arguments)
    });
    [high, low]
}

/// Splits `G` and `b I + c G`.
fn split_inner(gram: CubeTensor, b: f64, c: f64) -> (Split, Split) {
    let gram = into_contiguous(gram);
    let [count, _, n] = gram.shape().dims();
    let [high, low, inner_high, inner_low] = std::array::from_fn(|_| empty_like(&gram));
    stream::submit(
        [&gram, &high, &low, &inner_high, &inner_low],
        move |context, [gram, high, low, inner_high, inner_low]| {
            let (size, tensors) = (n * n, [gram, high, low, inner_high, inner_low]);
            let sizes = [size as u64, n as u64, float_argument(b as f32), float_argument(c as f32)];
            let arguments = tensors.into_iter().chain(sizes).collect();
            let (name, grid) = (entry!("tf32_split_inner"), [blocks(size), count]);
            context.launcher.launch(name, grid, 256, 0, arguments)
        },
    );
    ([high, low], [inner_high, inner_low])
}
