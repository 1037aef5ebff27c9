//! Settings of textual inversion: new words of the vocabulary, whose embeddings are trained beside the
//! adapters.
//!
//! Textual inversion is Gal et al., arXiv 2208.01618. Training embeddings together with weights is pivotal
//! tuning (Roich et al., arXiv 2106.05744).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::optimizer::{OptimizerConfig, is_before};
use crate::error::ConfigError;

/// New words of the vocabulary. Captions and prompts use them as any other word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokensConfig {
    /// Number of embeddings for each word in a text encoder.
    pub vectors: usize,
    /// The learning rate of the embeddings. The default is `optimizer.spectrum_lr`.
    pub learning_rate: Option<f64>,
    /// The share of the steps after which the embeddings are frozen. Without it they are trained to the end.
    pub stop_after: Option<f64>,
    /// Each new word, and the words whose embeddings it starts from: those of `mug` for `"<mug>" = "mug"`. An
    /// empty text starts from noise of the vocabulary's magnitude.
    pub words: BTreeMap<String, String>,
}

impl Default for TokensConfig {
    fn default() -> Self {
        Self { vectors: 1, learning_rate: None, stop_after: None, words: BTreeMap::new() }
    }
}

impl TokensConfig {
    /// Whether the embeddings are trained at `step`, from 0, of `steps`.
    pub fn trains_at(&self, step: usize, steps: usize) -> bool {
        !self.words.is_empty() && is_before(self.stop_after, step, steps)
    }

    pub(super) fn check(&self, optimizer: &OptimizerConfig) -> Result<(), ConfigError> {
        if self.vectors == 0 || self.vectors > 64 {
            return Err(ConfigError::OutOfRange { field: "tokens.vectors", range: "from 1 to 64" });
        }
        optimizer.check_group(
            self.learning_rate,
            self.stop_after,
            ["tokens.learning_rate", "tokens.stop_after"],
            "Prodigy estimates one rate for all parameters: remove `tokens.learning_rate` and `tokens.stop_after`, or set \
             `optimizer.flat = \"adamw\"`",
        )
    }
}
