//! Numbers of quantized matrices (`dequantize.cu`).

use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::cuda::stream;
use crate::cuda::support::empty;
use crate::quantize::{QuantFormat, QuantLayout};

/// The matrix `[rows, columns]` in `dtype`.
pub(crate) fn dequantize(
    words: CubeTensor,
    scales: CubeTensor,
    layout: QuantLayout,
    dtype: DType,
) -> CubeTensor {
    let [words, scales] = [words, scales].map(into_contiguous);
    let y = empty(&scales, layout.shape().to_vec(), dtype);
    let name = kernel!("dequantize", dtype);
    let format: u64 = match layout.format() {
        QuantFormat::Int8 => 0,
        QuantFormat::Fp8 => 1,
        QuantFormat::Nf4 => 2,
    };
    let (n, block, share) = (layout.numbers(), layout.block(), layout.blocks_per_scale());
    stream::submit([&words, &scales, &y], move |context, [words, scales, y]| {
        let arguments = vec![words, scales, y, n as u64, block as u64, share as u64, format];
        // A thread has at least eight numbers.
        let blocks = n.div_ceil(2048).clamp(1, 8192);
        context.launcher.launch(name, [blocks, 1], 256, 0, arguments)
    });
    y
}
