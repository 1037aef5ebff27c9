//! Settings of loss masks.

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// The source of the masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskSource {
    /// A greyscale file for each image, white where the loss counts: `NAME.mask.png` or `NAME-masklabel.png`
    /// beside the image, or `masks/NAME.png`. An image without a mask counts everywhere.
    #[default]
    Files,
    /// The alpha channel of the image: opaque pixels count.
    Alpha,
}

/// Masked loss: the weight of each part of an image in the loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaskConfig {
    /// The source of the masks.
    pub source: MaskSource,
    /// The weight of the black parts, from 0 to 1. A weight above 0 keeps them from being forgotten.
    pub unmasked_weight: f64,
    /// Whether the weights of an image are scaled to a mean of 1, so that an image with a small white part
    /// counts as much as any other.
    pub normalize: bool,
}

impl Default for MaskConfig {
    fn default() -> Self {
        Self { source: MaskSource::default(), unmasked_weight: 0.1, normalize: false }
    }
}

impl MaskConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if (0.0..=1.0).contains(&self.unmasked_weight) {
            return Ok(());
        }
        Err(ConfigError::OutOfRange { field: "masks.unmasked_weight", range: "from 0 to 1" })
    }
}
