//! Which matrix products go to a library of the device's vendor.

use burn::tensor::Tensor;

use crate::cuda;

/// Whether [`matmul`](crate::matmul) computes float32 products on the device of `x` with the vendor's BLAS
/// (cuBLAS).
///
/// Such a product keeps all digits of float32 at the full speed of the device. burn's own kernels may round
/// the factors to TF32.
pub fn has_vendor_blas<const D: usize>(x: &Tensor<D>) -> bool {
    cuda::has_blas(x)
}

/// Whether the device of `x` multiplies activations of [`ActivationFormat::Fp8`](crate::ActivationFormat)
/// with tensor cores. Other devices round them, and multiply floats.
pub fn has_fp8_products<const D: usize>(x: &Tensor<D>) -> bool {
    cuda::has_fp8_products(x)
}
