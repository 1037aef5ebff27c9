//! The kernels in burn's own operations, for any backend: the defaults of [`Kernels`](crate::Kernels) and
//! [`KernelGradients`](crate::KernelGradients).

pub(crate) mod attention;
pub(crate) mod bias_residual;
pub(crate) mod concat_channels;
pub(crate) mod conv;
pub(crate) mod dequantize;
pub(crate) mod fp8;
pub(crate) mod geglu;
pub(crate) mod host_matrix;
pub(crate) mod low_rank;
pub(crate) mod norm;
pub(crate) mod parallel_attention;
pub(crate) mod rms_norm_rotary;
pub(crate) mod scale_columns;
pub(crate) mod steps;
pub(crate) mod swiglu;
pub(crate) mod upsample;

use std::ops::Range;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, FloatDType, Slice};

/// Swaps the last two axes.
pub(crate) fn transposed<B: Backend>(matrix: FloatTensor<B>) -> FloatTensor<B> {
    let rank = matrix.rank();
    B::float_swap_dims(matrix, rank - 2, rank - 1)
}

/// The part `range` of the last axis.
pub(crate) fn columns<B: Backend>(x: &FloatTensor<B>, range: Range<usize>) -> FloatTensor<B> {
    let mut slices = vec![Slice::full(); x.rank() - 1];
    slices.push(Slice::from(range));
    B::float_slice(x.clone(), &slices)
}

/// Casts `x` to `dtype`. A tensor of that dtype is returned as it is.
pub(crate) fn cast<B: Backend>(x: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if x.dtype() == dtype { x } else { B::float_cast(x, dtype.into()) }
}

/// Casts half precision to float32. Other dtypes stay.
pub(crate) fn at_least_f32<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    match x.dtype() {
        DType::F16 | DType::BF16 => B::float_cast(x, FloatDType::F32),
        _ => x,
    }
}
