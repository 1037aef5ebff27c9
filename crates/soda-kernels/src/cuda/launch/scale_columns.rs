//! A matrix times a clamped diagonal matrix, and the gradient by the diagonal (`scale_columns.cu`).

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::cuda::stream;
use crate::cuda::support::empty_like;

/// The matrix `l diag(max(gain, floor))`.
pub(crate) fn scale_columns(l: CubeTensor, gain: CubeTensor, floor: CubeTensor) -> CubeTensor {
    let [l, gain, floor] = [l, gain, floor].map(into_contiguous);
    let (y, name) = (empty_like(&l), kernel!("scale_columns", l.dtype));
    let (k, n) = (gain.shape().num_elements(), l.shape().num_elements());
    stream::submit([&l, &gain, &floor, &y], move |context, [l, gain, floor, y]| {
        let arguments = vec![l, gain, floor, y, k as u64, n as u64];
        // A thread has several rows, and there is at least one thread for each column.
        let blocks = n.div_ceil(8192).max(k.div_ceil(256)).max(1);
        context.launcher.launch(name, [blocks, 1], 256, 0, arguments)
    });
    y
}

/// The gradient of [`scale_columns`] by the gain.
pub(crate) fn gradient(
    l: CubeTensor,
    dy: CubeTensor,
    gain: CubeTensor,
    floor: CubeTensor,
) -> CubeTensor {
    let [l, dy, gain, floor] = [l, dy, gain, floor].map(into_contiguous);
    let (dgain, name) = (empty_like(&gain), kernel!("scale_columns_gradient", l.dtype));
    let width = l.dtype.size();
    let k = gain.shape().num_elements();
    let rows = l.shape().num_elements() / k.max(1);
    let tensors = [&l, &dy, &gain, &floor, &dgain];
    stream::submit(tensors, move |context, [l, dy, gain, floor, dgain]| {
        let arguments = vec![l, dy, gain, floor, dgain, rows as u64, k as u64];
        // A block has two packs of columns: 16 bytes each if the rows are aligned to that, else one column
        // each.
        let packed = (k * width).is_multiple_of(16) && (l | dy).is_multiple_of(16);
        let packs = if packed { k * width / 16 } else { k };
        context.launcher.launch(name, [packs.div_ceil(2).max(1), 1], 512, 0, arguments)
    });
    dgain
}
