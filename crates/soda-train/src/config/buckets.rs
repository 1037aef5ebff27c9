//! Settings of aspect-ratio buckets.

use serde::{Deserialize, Serialize};

/// Aspect-ratio buckets: training sizes of various aspect ratios, with about as many pixels as a square of
/// the `resolution`.
///
/// An image is trained at the size with the nearest aspect ratio. The allowed values depend on the base
/// model, so that they are checked when it is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BucketConfig {
    /// Pixels between two sizes: a multiple of the autoencoder's downscaling factor, which is mostly 8.
    pub step: usize,
    /// The shortest side in pixels, a multiple of `step`. The default is half the `resolution`.
    pub min_side: Option<usize>,
    /// The longest side in pixels, a multiple of `step`. The default is twice the `resolution`.
    pub max_side: Option<usize>,
    /// Whether images smaller than their bucket are upscaled. If not, they get a smaller bucket of their own,
    /// and an image with a side below one `step` is an error.
    pub upscale: bool,
}

impl Default for BucketConfig {
    fn default() -> Self {
        Self { step: 64, min_side: None, max_side: None, upscale: true }
    }
}
