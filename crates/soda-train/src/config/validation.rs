//! Settings of the validation loss.

use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// The loss on the same pictures, noise and timesteps every time: unlike the loss of the steps, its values
/// can be compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValidationConfig {
    /// Steps between two measurements, beside one before the first and one after the last; 0 is none.
    pub every: usize,
    /// The part of the pictures that is not trained on but measured; at 0 the training pictures are, and
    /// the loss says how well they are learnt, not how well others are.
    pub held_out: f64,
    /// Timesteps at which each picture is measured, evenly over those that are trained.
    pub timesteps: usize,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self { every: 0, held_out: 0.0, timesteps: 8 }
    }
}

impl ValidationConfig {
    pub(super) fn check(&self) -> Result<(), TrainError> {
        let refuse = |field, range| Err(TrainError::OutOfRange { field, range });
        match () {
            () if self.timesteps == 0 => refuse("validation.timesteps", "at least 1"),
            () if !(0.0..1.0).contains(&self.held_out) => {
                refuse("validation.held_out", "from 0 up to, but not, 1")
            }
            () => Ok(()),
        }
    }
}
