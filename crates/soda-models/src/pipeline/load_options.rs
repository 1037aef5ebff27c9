//! How a model is loaded: dtypes and variants.

use std::collections::BTreeSet;

use burn::tensor::{Device, FloatDType};

use crate::error::ModelError;

/// How a model is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// The dtype of the weights in memory. An autoencoder that overflows in f16 stays in f32.
    pub dtype: FloatDType,
    /// The variant of the weight files, such as `fp16`. Parts without it are read from their plain files.
    /// `None` for the plain files, or else for the only variant there is.
    pub variant: Option<String>,
    /// The dtype of the denoiser's weights, if it differs.
    pub denoiser: Option<DenoiserPrecision>,
}

/// The dtypes of a denoiser that is to be adapted.
///
/// An adapter is made from a weight as it is in the file. All other weights never exist in f32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DenoiserPrecision {
    /// The dtype of the weights that are not in `keep_f32`.
    pub dtype: FloatDType,
    /// Paths of the weights that are loaded as f32. The caller casts them after it has made the adapters.
    pub keep_f32: BTreeSet<String>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { dtype: FloatDType::F32, variant: None, denoiser: None }
    }
}

impl LoadOptions {
    /// The dtypes of the denoiser's weights.
    pub(super) fn denoiser_precision(&self) -> DenoiserPrecision {
        let all = || DenoiserPrecision { dtype: self.dtype, keep_f32: BTreeSet::new() };
        self.denoiser.clone().unwrap_or_else(all)
    }

    /// Refuses dtypes that the device does not compute in.
    pub(super) fn check(&self, device: &Device) -> Result<(), ModelError> {
        for dtype in [self.dtype, self.denoiser_precision().dtype] {
            if !device.supports_dtype(dtype) {
                return Err(ModelError::UnsupportedPrecision { dtype });
            }
        }
        Ok(())
    }
}
