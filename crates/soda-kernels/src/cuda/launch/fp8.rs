//! Products with activations in E4M3 (`fp8.cu` and cuBLASLt).
//!
//! ```text
//! W = diag(s) C      y = Q(x) W'      dx = Q(dy diag(s)) C
//! ```

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::sizes::blocks;
use crate::cuda::cublaslt::{Scaled, product_of_codes};
use crate::cuda::support::{empty, kernels_take};
use crate::cuda::{dlopen, nvrtc, stream};
use crate::quantize::{ActivationFormat, QuantLayout};

/// Where the scales of rows and columns come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scaling {
    /// In the product.
    Within,
    /// In a pass over its result.
    After,
}

impl Scaling {
    /// What this machine has. `None` without tensor cores for E4M3, or a cuBLASLt that uses them.
    fn of_machine() -> Option<Self> {
        let (capability, version) = (nvrtc::compute_capability()?, dlopen::cublaslt_version()?);
        if capability == (9, 0) && version >= 120_900 {
            Some(Self::Within)
        } else if capability >= (8, 9) && version >= 120_400 {
            Some(Self::After)
        } else {
            None
        }
    }
}

/// Whether this machine has products in E4M3.
pub(crate) fn on_machine() -> bool {
    Scaling::of_machine().is_some()
}

/// The products with a matrix `W` of a layout, either way.
pub(crate) struct Fp8Products {
    layout: QuantLayout,
    scaling: Scaling,
}

impl Fp8Products {
    /// `None` if those of `x` `[rows, ..]` are not computed in E4M3.
    pub(crate) fn new(x: &CubeTensor, layout: QuantLayout) -> Option<Self> {
        let takes = layout.activations() == ActivationFormat::Fp8 && x.shape()[0] > 0;
        let scaling = Scaling::of_machine().filter(|_| takes && kernels_take(x))?;
        Some(Self { layout, scaling })
    }

    /// The product `Q(x) W'` in the dtype of `x`.
    pub(crate) fn product(
        self,
        x: CubeTensor,
        words: CubeTensor,
        scales: CubeTensor,
    ) -> CubeTensor {
        let (dtype, [rows, _]) = (x.dtype, self.layout.shape());
        let w = Scaled { codes: into_contiguous(words), scales: into_contiguous(scales) };
        scaled_product(&quantized(x, None), &w, rows, dtype, self.scaling)
    }

    /// The gradient of [`Self::product`] by `x`, in the dtype of `dy`.
    pub(crate) fn gradient(
        self,
        dy: CubeTensor,
        words: CubeTensor,
        scales: CubeTensor,
    ) -> CubeTensor {
        let (dtype, [_, columns]) = (dy.dtype, self.layout.shape());
        let c = transposed(into_contiguous(words), self.layout);
        let dy = quantized(dy, Some(into_contiguous(scales)));
        scaled_product(&dy, &c, columns, dtype, self.scaling)
    }
}

/// The product `lhs rhs'` in `dtype`, for `lhs` `[m, k]` and `rhs` `[n, k]`.
fn scaled_product(
    lhs: &Scaled,
    rhs: &Scaled,
    n: usize,
    dtype: DType,
    scaling: Scaling,
) -> CubeTensor {
    let m = lhs.codes.shape()[0];
    let y = empty(&lhs.scales, vec![m, n], dtype);
    match scaling {
        Scaling::Within => product_of_codes(lhs, rhs, &y, dtype, true),
        Scaling::After => {
            // Without scales a sum of codes may be larger than f16.
            let unscaled = if dtype == DType::F16 { DType::BF16 } else { dtype };
            product_of_codes(lhs, rhs, &y, unscaled, false);
            let name = kernel!("scale_product", dtype);
            stream::submit([&y, &lhs.scales, &rhs.scales], move |context, [y, rows, columns]| {
                let arguments = vec![y, rows, columns, m as u64, n as u64];
                context.launcher.launch(name, [blocks(m * n), 1], 256, 0, arguments)
            });
        }
    }
    y
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

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, FloatDType, Tensor};
    use soda_testing::relative_error;

    use super::*;
    use crate::cuda::support::Cube;

    /// Cards of other capabilities than 9.0 have the scales in a pass of their own.
    #[test]
    fn scales_within_a_product_and_after_it_are_the_same() {
        if Scaling::of_machine() != Some(Scaling::Within) {
            return;
        }
        let device = Device::default();
        let random = |shape: [usize; 2]| -> Tensor<2> {
            Tensor::random(shape, Distribution::Normal(0.0, 3.0), &device)
        };
        for (dtype, tolerance) in
            [(FloatDType::F32, 1e-3), (FloatDType::BF16, 1e-2), (FloatDType::F16, 1e-2)]
        {
            let factors = [[70, 4096], [48, 4096]].map(|shape| {
                let x = random(shape).cast(dtype).try_into_primitive::<Cube>();
                quantized(x.expect("a tensor of CUDA"), None)
            });
            let product = |scaling| -> Vec<f32> {
                let y = scaled_product(&factors[0], &factors[1], 48, dtype.into(), scaling);
                Tensor::<2>::from_primitive::<Cube>(y).into_data().iter().collect()
            };
            let off = relative_error(&product(Scaling::After), &product(Scaling::Within));
            assert!(off <= tolerance, "{dtype:?}: off by {off}");
        }
    }
}
