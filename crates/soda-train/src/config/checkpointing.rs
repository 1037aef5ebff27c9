//! Which intermediates of the forward pass are kept.

use serde::{Deserialize, Serialize};

/// What the backward pass finds of the forward pass, and what it computes again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradientCheckpointing {
    /// Every stage's intermediates are kept: most memory, least work.
    #[default]
    None,
    /// Only what is between the stages is kept, and the intermediates of one stage at a time.
    Block,
}
