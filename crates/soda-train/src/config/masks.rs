//! Settings of the loss's masks.

use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// Where masks come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskSource {
    /// A grey picture a picture, white where it counts: `NAME.mask.png` or `NAME-masklabel.png` beside
    /// it, or `masks/NAME.png`. Where there is none, all of the picture counts.
    #[default]
    Files,
    /// The picture's transparency: what is opaque counts.
    Alpha,
}

/// How much each part of a picture counts in the loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaskConfig {
    /// Where masks come from.
    pub source: MaskSource,
    /// What the black parts still count, from 0 to 1, so that they are not forgotten.
    pub unmasked_weight: f64,
    /// Whether a picture counts as much as any other however small its white part is; otherwise its loss is
    /// the mean over all of the picture, and small parts count little.
    pub normalize: bool,
}

impl Default for MaskConfig {
    fn default() -> Self {
        Self { source: MaskSource::default(), unmasked_weight: 0.1, normalize: false }
    }
}

impl MaskConfig {
    pub(super) fn check(&self) -> Result<(), TrainError> {
        if (0.0..=1.0).contains(&self.unmasked_weight) {
            return Ok(());
        }
        Err(TrainError::OutOfRange { field: "masks.unmasked_weight", range: "from 0 to 1" })
    }
}
