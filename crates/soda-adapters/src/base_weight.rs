//! The weight of the base under an adapter: a tensor of floats, or stored otherwise.

use burn::tensor::{DType, Tensor};
use soda_kernels::{StoredWeight, matmul};

/// The frozen weight `[in, out]` that an adapter changes.
#[allow(clippy::large_enum_variant, reason = "made for one product, and never stored")]
#[derive(Clone, Debug)]
pub enum BaseWeight {
    /// The weight in the float type of the network.
    Float(Tensor<2>),
    /// A weight that is quantized or in host memory, and the float type of the network.
    Stored(StoredWeight, DType),
}

impl BaseWeight {
    /// The shape `[in, out]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Float(w) => w.dims(),
            Self::Stored(w, _) => w.dims(),
        }
    }

    /// The float type of the network.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Float(w) => w.dtype(),
            Self::Stored(_, dtype) => *dtype,
        }
    }

    /// The product `x W` of rows `x` `[rows, in]`.
    ///
    /// The tape of a stored weight holds its codes, or a reference to the host's memory.
    pub fn product(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Float(w) => matmul(x, w.clone()),
            Self::Stored(w, _) => w.product(x),
        }
    }

    /// The weight in the float type of the network.
    pub fn to_float(&self) -> Tensor<2> {
        match self {
            Self::Float(w) => w.clone(),
            Self::Stored(w, dtype) => w.to_float(*dtype),
        }
    }

    /// The weight in floats; `None` for a stored one.
    pub(crate) fn as_float(&self) -> Option<&Tensor<2>> {
        match self {
            Self::Float(w) => Some(w),
            Self::Stored(..) => None,
        }
    }
}
