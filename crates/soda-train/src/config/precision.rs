//! The setting of the precision of the networks.
//!
//! Decompositions use the weights in f32, and adapters stay in f32. Only the frozen base model and its
//! activations are cast.

use burn::tensor::{Device, FloatDType};
use serde::{Deserialize, Serialize};
use soda_kernels::{ActivationFormat, QuantFormat};

use crate::error::ConfigError;

/// The floating-point type in which a network computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// bfloat16: the range of f32 with eight bits of mantissa, in half the memory.
    Bf16,
    /// Half precision: eleven bits of mantissa and a range from 6e-8 to 65504, for devices without bf16. The
    /// loss is scaled ([`LossScale`](crate::LossScale)) and steps whose gradients overflow are skipped.
    F16,
}

impl Precision {
    /// The burn dtype.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
            Self::F16 => FloatDType::F16,
        }
    }

    /// The name in a configuration, and as `--dtype` of a command.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Whether `device` computes in this precision.
    pub(crate) fn is_supported(self, device: &Device) -> bool {
        device.supports_dtype(self.dtype())
    }
}

/// The number format of the frozen linear weights of the base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BasePrecision {
    /// Integers of 8 bits with a scale for each output.
    Int8,
    /// Floats of 8 bits (E4M3) with a scale for each output.
    Fp8,
    /// NF4 of QLoRA: 4 bits, in blocks of 64 with scales of 8 bits.
    Nf4,
}

impl BasePrecision {
    /// The name in a configuration, and as `--base-precision` of a command.
    pub fn name(self) -> &'static str {
        QuantFormat::from(self).name()
    }
}

impl From<BasePrecision> for QuantFormat {
    fn from(precision: BasePrecision) -> Self {
        match precision {
            BasePrecision::Int8 => Self::Int8,
            BasePrecision::Fp8 => Self::Fp8,
            BasePrecision::Nf4 => Self::Nf4,
        }
    }
}

/// The number format of activations and their gradients in the products with frozen linear weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActivationPrecision {
    /// Floats of 8 bits (E4M3) with a scale for each row, found anew in every product.
    Fp8,
}

impl ActivationPrecision {
    /// The name in a configuration, and as `--activation-precision` of a command.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp8 => "fp8",
        }
    }
}

impl From<ActivationPrecision> for ActivationFormat {
    fn from(precision: ActivationPrecision) -> Self {
        match precision {
            ActivationPrecision::Fp8 => Self::Fp8,
        }
    }
}

/// Checks that activations have a format that weights of this format are multiplied with.
pub(super) fn check_formats(
    weights: Option<BasePrecision>,
    activations: Option<ActivationPrecision>,
) -> Result<(), ConfigError> {
    if activations.is_none() || weights == Some(BasePrecision::Fp8) {
        return Ok(());
    }
    Err(ConfigError::Conflict(
        "`activation_precision` belongs to `base_precision = \"fp8\"`: set that, or remove \
         `activation_precision`",
    ))
}
