//! Settings of checkpoints.

use serde::{Deserialize, Serialize};

/// Settings of the checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between two checkpoints. At 0 one is written only when the run is asked to stop.
    pub every: usize,
    /// Number of the newest checkpoints that are kept.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 100, keep: 2 }
    }
}
