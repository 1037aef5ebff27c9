//! Settings of text encoders that learn beside the UNet.

use serde::{Deserialize, Serialize};
use soda_adapters::Targets;

use crate::config::optimizer::{OptimizerConfig, is_before};
use crate::error::TrainError;

/// Adapters of the text encoders, of both in SDXL, by the method of the UNet's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TextEncoderConfig {
    /// Whether they learn.
    pub enabled: bool,
    /// Their learning rate, of rotations and of everything flat; without it those of the UNet's adapter.
    pub learning_rate: Option<f64>,
    /// Which of their weights are adapted: `text-attention`, `text-attention+mlp`, or patterns over paths such as
    /// `text_model.encoder.layers.0.self_attn.q_proj.weight`.
    pub targets: Targets,
    /// The share of the steps after which they stand still; without it they learn to the end.
    pub stop_after: Option<f64>,
}

impl Default for TextEncoderConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            learning_rate: None,
            targets: Targets(vec!["text-attention".to_owned()]),
            stop_after: None,
        }
    }
}

impl TextEncoderConfig {
    /// Whether they learn in `step`, from 0, of `steps`.
    pub fn learns_in(&self, step: usize, steps: usize) -> bool {
        self.enabled && is_before(self.stop_after, step, steps)
    }

    pub(super) fn check(&self, optimizer: &OptimizerConfig) -> Result<(), TrainError> {
        optimizer.check_own(
            self.learning_rate,
            self.stop_after,
            ["text_encoder.learning_rate", "text_encoder.stop_after"],
            "Prodigy estimates one rate for all parameters: remove `text_encoder.learning_rate` and \
             `text_encoder.stop_after`, or set `optimizer.flat = \"adamw\"`",
        )
    }
}
