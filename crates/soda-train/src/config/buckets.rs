//! Settings of the sizes that pictures are learnt at.

use serde::{Deserialize, Serialize};

/// Aspect-ratio buckets: a picture is learnt at the size that is nearest to it in aspect ratio, among those of
/// about the base's own number of pixels.
///
/// What a bucket can be depends on the base, so that these are checked with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BucketConfig {
    /// Pixels between two sizes; a multiple of what the autoencoder takes for one latent, mostly 8.
    pub step: usize,
    /// The least side, a multiple of `step`; half the base's side where it is left out.
    pub min_side: Option<usize>,
    /// The largest side, a multiple of `step`; twice the base's side where it is left out.
    pub max_side: Option<usize>,
    /// Whether pictures smaller than their bucket are enlarged; otherwise they get a smaller bucket of
    /// their own, and those below one `step` are refused.
    pub upscale: bool,
}

impl Default for BucketConfig {
    fn default() -> Self {
        Self { step: 64, min_side: None, max_side: None, upscale: true }
    }
}
