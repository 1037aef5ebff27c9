//! The weight of the base under an adapter: a tensor of floats, or stored otherwise.

use burn::tensor::{DType, Device, Tensor, TensorData};
use soda_kernels::{StoredWeight, has_vendor_blas, matmul};

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

    /// The device that computes with the weight.
    pub fn device(&self) -> Device {
        match self {
            Self::Float(w) => w.device(),
            Self::Stored(w, _) => w.device(),
        }
    }

    /// Whether the device has the library of [`has_vendor_blas`](soda_kernels::has_vendor_blas).
    pub(crate) fn has_vendor_blas(&self) -> bool {
        match self {
            Self::Float(w) => has_vendor_blas(w),
            Self::Stored(w, _) => w.has_vendor_blas(),
        }
    }

    /// The weight in f32, if it is floats in host memory.
    pub(crate) fn host_floats(&self) -> Option<TensorData> {
        match self {
            Self::Float(_) => None,
            Self::Stored(w, _) => w.host_floats(),
        }
    }

    /// The checksum of the weight in f32, if it is floats in host memory.
    pub(crate) fn host_checksum(&self) -> Option<u64> {
        match self {
            Self::Float(_) => None,
            Self::Stored(w, _) => w.host_checksum(),
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
