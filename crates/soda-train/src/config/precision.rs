//! In which precision the network computes.
//!
//! Decompositions are made from the weights in f32, and the adapter stays in f32; what is cast is the frozen
//! base, and what goes through it.

use burn::tensor::{Device, FloatDType};
use serde::{Deserialize, Serialize};

/// Precision of the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single.
    #[default]
    F32,
    /// The range of f32 with eight bits of mantissa: half the memory, and quick on cards that have it.
    Bf16,
    /// Eleven bits of mantissa and the range from 6e-8 to 65504, for cards without bf16: the loss is scaled
    /// ([`LossScale`](crate::LossScale)), and steps whose gradients overflow are passed over.
    F16,
}

impl Precision {
    /// The type of its numbers.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
            Self::F16 => FloatDType::F16,
        }
    }

    /// Whether `device` computes in it.
    pub(crate) fn is_supported(self, device: &Device) -> bool {
        device.supports_dtype(self.dtype())
    }
}
