//! Products with activations in E4M3 (`fp8.cu` and cuBLASLt).
//!
//! ```text
//! W = diag(s) C      y = Q(x) W'      dx = Q(dy diag(s)) C
//! ```

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::cuda::cublaslt::{self, Scaled};
use crate::cuda::support::{empty, kernels_take};
use crate::cuda::{nvrtc, stream};
use crate::quantize::{ActivationFormat, QuantLayout};

/// The compute capability whose products take a scale for each row and each column.
const CAPABILITY: (i32, i32) = (9, 0);
/// The tensor cores take rows of a multiple of this number of codes.
const MULTIPLE: usize = 16;

/// Whether the products of `x` `[rows, ..]` with a matrix of this layout, either way, are computed in E4M3.
pub(crate) fn takes(x: &CubeTensor, layout: QuantLayout) -> bool {
    layout.activations() == ActivationFormat::Fp8
        && layout.shape().iter().all(|size| size.is_multiple_of(MULTIPLE))
        && x.shape()[0] > 0
        && kernels_take(x)
        && nvrtc::compute_capability() == Some(CAPABILITY)
        && cublaslt::has_scaled_products()
}

/// The product `Q(x) W'` in the dtype of `x`.
pub(crate) fn product(
    x: CubeTensor,
    words: CubeTensor,
    scales: CubeTensor,
    layout: QuantLayout,
) -> CubeTensor {
    let dtype = x.dtype;
    let w = Scaled { codes: into_contiguous(words), scales: into_contiguous(scales) };
    cublaslt::scaled_product(quantized(x, None), w, layout.shape()[0], dtype)
}

/// The gradient of [`product`] by `x`, in the dtype of `dy`.
pub(crate) fn gradient(
    dy: CubeTensor,
    words: CubeTensor,
    scales: CubeTensor,
    layout: QuantLayout,
) -> CubeTensor {
    let (dtype, [_, columns]) = (dy.dtype, layout.shape());
    let c = transposed(into_contiguous(words), layout);
    let dy = quantized(dy, Some(into_contiguous(scales)));
    cublaslt::scaled_product(dy, c, columns, dtype)
}

/// The codes of the rows of `x`, of `x diag(by)` if there is such a vector.
fn quantized(x: CubeTensor, by: Option<CubeTensor>) -> Scaled {
    let x = into_contiguous(x);
    let [rows, columns] = x.shape().dims();
    let name = kernel!("quantize_rows", x.dtype);
    let codes = empty(&x, vec![rows, columns], DType::U8);
    let scales = empty(&x, vec![rows], DType::F32);
    // A thread has eight numbers at a time.
    let threads = (columns / 8).next_power_of_two().clamp(32, 512);
    let has_factors = by.is_some();
    // Without factors, any address serves.
    let by = by.unwrap_or_else(|| scales.clone());
    stream::submit([&x, &by, &codes, &scales], move |context, [x, by, codes, scales]| {
        let by = if has_factors { by } else { 0 };
        let arguments = vec![x, by, codes, scales, columns as u64];
        context.launcher.launch(name, [rows, 1], threads, 0, arguments)
    });
    Scaled { codes, scales }
}

/// The codes of the transposed matrix, whose scales are 1.
fn transposed(words: CubeTensor, layout: QuantLayout) -> Scaled {
    let [rows, columns] = layout.shape();
    let codes = empty(&words, vec![columns, rows], DType::U8);
    let scales = empty(&words, vec![columns], DType::F32);
    stream::submit([&words, &codes, &scales], move |context, [words, codes, scales]| {
        let arguments = vec![words, codes, scales, rows as u64, columns as u64];
        let grid = [columns.div_ceil(128), rows.div_ceil(128)];
        context.launcher.launch(entry!("transpose_codes"), grid, 256, 0, arguments)
    });
    Scaled { codes, scales }
}
