//! Two casts in one launch (`elementwise.cu`).

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::sizes::blocks;
use crate::cuda::stream;
use crate::cuda::support::empty;

/// Casts two tensors of float32 to the half precision `to`.
pub(crate) fn f32_to_half(a: CubeTensor, b: CubeTensor, to: DType) -> (CubeTensor, CubeTensor) {
    let [a, b] = [a, b].map(into_contiguous);
    let [x, y] = [&a, &b].map(|from| empty(from, from.shape().to_vec(), to));
    let [n, m] = [&a, &b].map(|from| from.shape().num_elements());
    let name = kernel!("cast_pair", to);
    stream::submit([&a, &b, &x, &y], move |context, [a, b, x, y]| {
        let arguments = vec![a, b, x, y, n as u64, m as u64];
        context.launcher.launch(name, [blocks(n.max(m)), 2], 256, 0, arguments)
    });
    (x, y)
}
