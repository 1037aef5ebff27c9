//! Settings of new words, whose vectors learn beside the adapters (pivotal tuning: Roich et al., arXiv 2106.05744; of text,
//! Textual Inversion, Gal et al., arXiv 2208.01618).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{FlatRule, OptimizerConfig};
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
        !self.words.is_empty()
            && self.stop_after.is_none_or(|share| (step as f64) < share * steps as f64)
    }

    pub(super) fn check(&self, optimizer: &OptimizerConfig) -> Result<(), TrainError> {
        if self.vectors == 0 || self.vectors > 64 {
            return Err(TrainError::OutOfRange { field: "tokens.vectors", range: "from 1 to 64" });
        }
        if self.learning_rate.is_some_and(|rate| !rate.is_finite() || rate < 0.0) {
            let field = "tokens.learning_rate";
            return Err(TrainError::OutOfRange { field, range: "0 or more" });
        }
        if self.stop_after.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
            let field = "tokens.stop_after";
            return Err(TrainError::OutOfRange { field, range: "more than 0 and at most 1" });
        }
        let own = self.learning_rate.is_some() || self.stop_after.is_some();
        if own && optimizer.flat == FlatRule::Prodigy {
            return Err(TrainError::Conflict(
                "Prodigy estimates one rate for all parameters: remove `tokens.learning_rate` and \
                 `tokens.stop_after`, or set `optimizer.flat = \"adamw\"`",
            ));
        }
        Ok(())
    }
}
