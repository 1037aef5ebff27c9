//! Settings of data augmentation.

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// The most crops of an image and orders of a caption, which are all encoded before the first step.
const MOST_VARIANTS: usize = 1000;

/// The variants of each example that a run trains on. The default is one variant: the centre crop and the
/// caption as written.
///
/// All variants are encoded once, before the first step. Each step draws among them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Number of crops of an image whose aspect ratio differs from the training size. 1 is the centre crop; a
    /// larger number is that many random crops.
    pub crops: usize,
    /// Whether the mirror image of each crop is trained on as well.
    pub flip: bool,
    /// The probability, from 0 to 1, that a sample's caption is replaced by the empty caption.
    pub caption_dropout: f64,
    /// Number of orders of a caption's comma-separated tags. 1 is the written order; a larger number is at
    /// most that many random orders.
    pub tag_orders: usize,
    /// Number of tags at the start that keep their place, such as the one with the identifier.
    pub keep_tags: usize,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self { crops: 1, flip: false, caption_dropout: 0.0, tag_orders: 1, keep_tags: 1 }
    }
}

impl AugmentConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let refuse = |field, range| Err(ConfigError::OutOfRange { field, range });
        match () {
            () if !(1..=MOST_VARIANTS).contains(&self.crops) => {
                refuse("augment.crops", "from 1 to 1000")
            }
            () if !(1..=MOST_VARIANTS).contains(&self.tag_orders) => {
                refuse("augment.tag_orders", "from 1 to 1000")
            }
            () if !(0.0..=1.0).contains(&self.caption_dropout) => {
                refuse("augment.caption_dropout", "from 0 to 1")
            }
            () if self.tag_orders == 1 && self.keep_tags != Self::default().keep_tags => {
                Err(ConfigError::Conflict(
                    "`augment.keep_tags` decides nothing while tags stay in their order: set \
                     `augment.tag_orders` as well",
                ))
            }
            () => Ok(()),
        }
    }
}
