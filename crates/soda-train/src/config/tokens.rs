//! Settings of new words, whose vectors learn beside the adapters (pivotal tuning: Roich et al., arXiv 2106.05744; of text,
//! Textual Inversion, Gal et al., arXiv 2208.01618).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::optimizer::{OptimizerConfig, is_before};
use crate::error::TrainError;

/// New words of the vocabulary. Captions and prompts say them as any word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokensConfig {
    /// Vectors that each word stands for in a text encoder.
    pub vectors: usize,
    /// Their learning rate; without it that of everything flat.
    pub learning_rate: Option<f64>,
    /// The share of the steps after which they stand still; without it they learn to the end.
    pub stop_after: Option<f64>,
    /// Each new word, and the words that its vectors start from: those of `mug` for `"<mug>" = "mug"`. Where they are
    /// empty, noise of the vocabulary's size.
    pub words: BTreeMap<String, String>,
}

impl Default for TokensConfig {
    fn default() -> Self {
        Self { vectors: 1, learning_rate: None, stop_after: None, words: BTreeMap::new() }
    }
}

impl TokensConfig {
    /// Whether they learn in `step`, from 0, of `steps`.
    pub fn learn_in(&self, step: usize, steps: usize) -> bool {
        !self.words.is_empty() && is_before(self.stop_after, step, steps)
    }

    pub(super) fn check(&self, optimizer: &OptimizerConfig) -> Result<(), TrainError> {
        if self.vectors == 0 || self.vectors > 64 {
            return Err(TrainError::OutOfRange { field: "tokens.vectors", range: "from 1 to 64" });
        }
        optimizer.check_own(
            self.learning_rate,
            self.stop_after,
            ["tokens.learning_rate", "tokens.stop_after"],
            "Prodigy estimates one rate for all parameters: remove `tokens.learning_rate` and `tokens.stop_after`, or set \
             `optimizer.flat = \"adamw\"`",
        )
    }
}
