//! The setting of gradient checkpointing.

use serde::{Deserialize, Serialize};

/// Gradient checkpointing (Chen et al., arXiv 1604.06174): which activations the backward pass recomputes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradientCheckpointing {
    /// All activations are kept: the most memory and the least work.
    #[default]
    None,
    /// Only the activations between the stages of the denoiser are kept. Those inside a stage are recomputed,
    /// one stage at a time.
    Block,
}
