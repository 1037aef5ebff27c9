//! The weight of the base under an adapter, in floats or quantized.

use burn::tensor::{DType, Tensor};
use soda_kernels::{QuantizedWeight, matmul};

/// The frozen weight `[in, out]` that an adapter changes, in the float type of the network or quantized.
#[allow(clippy::large_enum_variant, reason = "made for one product, and never stored")]
#[derive(Clone, Debug)]
pub enum BaseWeight {
    /// The weight in floats.
    Float(Tensor<2>),
    /// A quantized weight, and the float type of the network.
    Quantized(QuantizedWeight, DType),
}

impl BaseWeight {
    /// The shape `[in, out]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Float(w) => w.dims(),
            Self::Quantized(w, _) => w.dims(),
        }
    }

    /// The float type of the network.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Float(w) => w.dtype(),
            Self::Quantized(_, dtype) => *dtype,
        }
    }

    /// The product `x W` of rows `x` `[rows, in]`.
    ///
    /// The tape of a quantized weight holds its codes alone.
    pub fn product(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Float(w) => matmul(x, w.clone()),
            Self::Quantized(w, _) => w.product(x),
        }
    }

    /// The weight in the float type of the network.
    pub fn to_float(&self) -> Tensor<2> {
        match self {
            Self::Float(w) => w.clone(),
            Self::Quantized(w, dtype) => w.dequantize(*dtype),
        }
    }

    /// The weight in floats; `None` for a quantized one.
    pub(crate) fn as_float(&self) -> Option<&Tensor<2>> {
        match self {
            Self::Float(w) => Some(w),
            Self::Quantized(..) => None,
        }
    }
}
