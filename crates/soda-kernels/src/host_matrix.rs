//! Matrices of a frozen network in host memory, which a device copies when it needs them.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Weak};

use burn::tensor::{DType, FloatDType, TensorData};

use crate::quantize::{QuantLayout, QuantizedMatrix};

/// The memory that a [`HostMatrix`] has pinned. Dropping it unpins the memory.
pub(crate) type Pin = Box<dyn Any + Send + Sync>;

/// A matrix `[rows, columns]` in host memory. Clones share the memory.
#[derive(Clone)]
pub struct HostMatrix(Arc<Memory>);

struct Memory {
    numbers: HostNumbers,
    /// Declared before the bytes, so that it is dropped before them.
    _pin: Option<Pin>,
    bytes: Vec<u8>,
}

/// How the bytes of a [`HostMatrix`] are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostNumbers {
    /// Floats in row-major order.
    Floats {
        /// The type of the floats.
        dtype: FloatDType,
        /// The shape `[rows, columns]`.
        shape: [usize; 2],
    },
    /// The words of a quantized matrix. Its scales are elsewhere.
    Codes(QuantLayout),
}

impl HostMatrix {
    /// The words of a quantized matrix. `pin` pins memory whose address will not change, if it can.
    pub(crate) fn of_codes(
        matrix: &QuantizedMatrix,
        pin: impl FnOnce(&[u8]) -> Option<Pin>,
    ) -> Self {
        Self::new(HostNumbers::Codes(matrix.layout()), matrix.word_bytes(), pin)
    }

    /// A matrix of floats. `None` if `data` is not one.
    pub(crate) fn of_floats(
        data: &TensorData,
        pin: impl FnOnce(&[u8]) -> Option<Pin>,
    ) -> Option<Self> {
        let dtype = match data.dtype() {
            DType::F32 => FloatDType::F32,
            DType::F16 => FloatDType::F16,
            DType::BF16 => FloatDType::BF16,
            _ => return None,
        };
        let shape: [usize; 2] = data.shape().to_vec().try_into().ok()?;
        Some(Self::new(HostNumbers::Floats { dtype, shape }, data.as_bytes().to_vec(), pin))
    }

    fn new(numbers: HostNumbers, bytes: Vec<u8>, pin: impl FnOnce(&[u8]) -> Option<Pin>) -> Self {
        let _pin = pin(&bytes);
        Self(Arc::new(Memory { numbers, _pin, bytes }))
    }

    /// How the bytes are read.
    pub fn numbers(&self) -> HostNumbers {
        self.0.numbers
    }

    /// The shape `[rows, columns]`.
    pub fn shape(&self) -> [usize; 2] {
        match self.numbers() {
            HostNumbers::Floats { shape, .. } => shape,
            HostNumbers::Codes(layout) => layout.shape(),
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// The bytes as a tensor: floats `[rows, columns]`, or words `[n]`.
    pub(crate) fn to_data(&self) -> TensorData {
        let bytes = self.bytes().to_vec();
        match self.numbers() {
            HostNumbers::Floats { dtype, shape } => {
                TensorData::from_bytes_vec(bytes, shape, dtype.into())
            }
            HostNumbers::Codes(layout) => {
                TensorData::from_bytes_vec(bytes, [layout.words()], DType::I32)
            }
        }
    }

    /// A reference that does not keep the memory allocated.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "CUDA devices copy ahead"))]
    pub(crate) fn downgrade(&self) -> WeakHostMatrix {
        WeakHostMatrix(Arc::downgrade(&self.0))
    }
}

impl fmt::Debug for HostMatrix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("HostMatrix").field(&self.numbers()).finish()
    }
}

/// A reference to a [`HostMatrix`] that does not keep its memory allocated.
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "CUDA devices copy ahead"))]
#[derive(Clone)]
pub(crate) struct WeakHostMatrix(Weak<Memory>);

#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "CUDA devices copy ahead"))]
impl WeakHostMatrix {
    /// The matrix, if it still exists.
    pub(crate) fn upgrade(&self) -> Option<HostMatrix> {
        self.0.upgrade().map(HostMatrix)
    }

    /// Whether this is a reference to `matrix`.
    pub(crate) fn is(&self, matrix: &HostMatrix) -> bool {
        std::ptr::eq(self.0.as_ptr(), Arc::as_ptr(&matrix.0))
    }
}
