//! Settings of samples.

use serde::{Deserialize, Serialize};

/// Settings of the images that are sampled before, after and during training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// The prompts. If empty, the data set's evaluation prompts are used, or else its captions.
    pub prompts: Vec<String>,
    /// Prompts without the subject. The change of their images is the score `drift`.
    pub unrelated: Vec<String>,
    /// Training steps between two image grids, `samples/<step>.png`. At 0 none are sampled during training.
    pub every: usize,
    /// Number of DDIM steps.
    pub steps: usize,
    /// The scale of classifier-free guidance.
    pub guidance: f64,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { prompts: Vec::new(), unrelated: Vec::new(), every: 0, steps: 30, guidance: 5.0 }
    }
}
