//! Which tensors the libraries and kernels take.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeDevice};

use super::{dlopen, nvrtc};

/// The backend of all CubeCL devices, of which CUDA devices are some.
pub(super) type Cube = CubeBackend;

/// The longest row that the row kernels take: 16 elements for each of 1024 threads.
const LONGEST_ROW: usize = 1024 * 16;

/// Whether `x` is a tensor in float32 or half precision on a CUDA device.
pub(super) fn on_cuda(x: &CubeTensor) -> bool {
    matches!(x.device, CubeDevice::Cuda(_))
        && matches!(x.dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Whether products of `x` go to cuBLAS.
pub(super) fn cublas_takes(x: &CubeTensor) -> bool {
    let double = matches!(x.device, CubeDevice::Cuda(_)) && x.dtype == DType::F64;
    (on_cuda(x) || double) && dlopen::cublas_present()
}

/// Whether the kernels of the base image take `x`.
pub(super) fn kernels_take(x: &CubeTensor) -> bool {
    on_cuda(x) && nvrtc::base_image().is_some()
}

/// Whether the row kernels take the last axis of `x`.
pub(super) fn row_kernels_take(x: &CubeTensor) -> bool {
    kernels_take(x) && x.shape()[x.rank() - 1] <= LONGEST_ROW
}

/// An uninitialized contiguous tensor with the shape and dtype of `x`.
pub(super) fn empty_like(x: &CubeTensor) -> CubeTensor {
    empty(x, x.shape().to_vec(), x.dtype)
}

/// An uninitialized contiguous tensor on the device of `x`.
pub(super) fn empty(x: &CubeTensor, shape: Vec<usize>, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape.into(), dtype)
}
