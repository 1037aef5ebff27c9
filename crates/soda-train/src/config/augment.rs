//! Settings of what is varied in the data.

use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// The variants of an example that a run learns from. Nothing is varied by default.
///
/// All of them are encoded once, before the first step; a step draws among them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Crops of a picture that is not square: 1 is the centre, more are as many at random places.
    pub crops: usize,
    /// Whether each is learnt mirrored as well.
    pub flip: bool,
    /// The part of the samples that is shown without caption, from 0 to 1.
    pub caption_dropout: f64,
    /// Orders of a caption's comma-separated tags: 1 is as written, more are as many random ones.
    pub tag_orders: usize,
    /// Tags at the start that keep their place, such as the one with the identifier.
    pub keep_tags: usize,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self { crops: 1, flip: false, caption_dropout: 0.0, tag_orders: 1, keep_tags: 1 }
    }
}

impl AugmentConfig {
    pub(super) fn check(&self) -> Result<(), TrainError> {
        let refuse = |field, range| Err(TrainError::OutOfRange { field, range });
        match () {
            () if self.crops == 0 => refuse("augment.crops", "at least 1"),
            () if self.tag_orders == 0 => refuse("augment.tag_orders", "at least 1"),
            () if !(0.0..=1.0).contains(&self.caption_dropout) => {
                refuse("augment.caption_dropout", "from 0 to 1")
            }
            () => Ok(()),
        }
    }
}
