//! Settings of text encoders that are trained beside the UNet.

use serde::{Deserialize, Serialize};
use soda_adapters::Targets;

use crate::config::optimizer::{OptimizerConfig, is_before};
use crate::error::ConfigError;

/// Adapters of the text encoder, or of both text encoders of SDXL. They use the UNet's method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TextEncoderConfig {
    /// Whether the text encoders are trained.
    pub enabled: bool,
    /// The learning rate of all their parameters. The default is the UNet adapter's learning rates.
    pub learning_rate: Option<f64>,
    /// Which weights are adapted: `text-attention`, `text-attention+mlp`, or patterns over paths such as
    /// `text_model.encoder.layers.0.self_attn.q_proj.weight`.
    pub targets: Targets,
    /// The share of the steps after which the text encoders are frozen. Without it they are trained to the
    /// end.
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
    /// Whether the text encoders are trained at `step`, from 0, of `steps`.
    pub fn trains_at(&self, step: usize, steps: usize) -> bool {
        self.enabled && is_before(self.stop_after, step, steps)
    }

    pub(super) fn check(&self, optimizer: &OptimizerConfig) -> Result<(), ConfigError> {
        optimizer.check_group(
            self.learning_rate,
            self.stop_after,
            ["text_encoder.learning_rate", "text_encoder.stop_after"],
            "Prodigy estimates one rate for all parameters: remove `text_encoder.learning_rate` and \
             `text_encoder.stop_after`, or set `optimizer.flat = \"adamw\"`",
        )
    }
}
