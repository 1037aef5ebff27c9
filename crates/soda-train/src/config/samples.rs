//! Settings of samples.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use soda_models::vae::{Tiling, VaeConfig};

use crate::error::ConfigError;

/// Settings of the images that are sampled before, after and during training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// The prompts. If empty, the data set's evaluation prompts are used, or else at most eight of its
    /// captions, evenly spaced.
    pub prompts: Vec<String>,
    /// Prompts without the subject. The change of their images is the score `drift`.
    pub unrelated: Vec<String>,
    /// Training steps between two image grids, `samples/<step>.png`. At 0 none are sampled during training.
    pub every: usize,
    /// Number of DDIM steps.
    pub steps: usize,
    /// The scale of classifier-free guidance.
    pub guidance: f64,
    /// Side in pixels of the tiles in which larger images are decoded, as `AutoencoderKL.enable_tiling` of
    /// diffusers does. `None` for whole images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tile_size: Option<usize>,
}

/// The most steps of a sampler. No model was trained on more timesteps to choose from.
const MAX_SAMPLER_STEPS: usize = 1000;

/// The sides of tiles in pixels: at least a few latents, at most the side of the largest image.
const TILE_SIZES: RangeInclusive<usize> = 64..=16384;

impl SampleConfig {
    /// Checks that all numbers are in their ranges.
    ///
    /// # Errors
    /// The first field out of range.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let refused = |field: &'static str, range: &'static str| {
            Err(ConfigError::OutOfRange { field, range })
        };
        if self.steps > MAX_SAMPLER_STEPS {
            return refused("samples.steps", "at most 1000");
        }
        if !self.guidance.is_finite() {
            return refused("samples.guidance", "a finite number");
        }
        match self.tile_size {
            Some(side) if !TILE_SIZES.contains(&side) => {
                refused("samples.tile_size", "from 64 to 16384 pixels")
            }
            _ => Ok(()),
        }
    }

    /// The tiles in which an autoencoder decodes images.
    pub(crate) fn tiling(&self, vae: &VaeConfig) -> Option<Tiling> {
        self.tile_size.map(|side| vae.tiles(side))
    }
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            unrelated: Vec::new(),
            every: 0,
            steps: 30,
            guidance: 5.0,
            tile_size: None,
        }
    }
}
