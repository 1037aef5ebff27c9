//! Settings of the loss.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use soda_models::scheduler::{PredictionType, ScheduleChange};

use crate::error::TrainError;

/// What is minimised for one sample; the formulas are in `loss.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// The squared error.
    #[default]
    Mse,
    /// Direct Consistency Optimization: better than the frozen network, but no further than needed.
    Dco,
}

/// What a step minimises, and on which noise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectiveConfig {
    /// The loss.
    pub loss: Loss,
    /// Of DCO: how soon a sample that is better than the frozen network stops counting.
    pub dco_beta: f64,
    /// Min-SNR weighting with this γ; without it all timesteps count alike.
    pub min_snr_gamma: Option<f64>,
    /// Strength of the noise that shifts whole channels.
    pub noise_offset: f64,
    /// What the network is taught to predict: `epsilon` or `v`; without it what its base predicts.
    pub prediction: Option<PredictionType>,
    /// Whether the last timestep becomes pure noise (arXiv 2305.08891), which needs `v`.
    pub zero_terminal_snr: bool,
    /// The first timestep that is drawn, and the first that is no more; without it all are.
    pub timesteps: Option<[usize; 2]>,
}

/// Prior preservation (DreamBooth, arXiv 2208.12242): pictures of the class among the subject's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriorConfig {
    /// What the class is called, such as `a photo of a mug`.
    pub prompt: String,
    /// A folder of class pictures. Without it the base model draws them.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// How many the base model draws.
    #[serde(default = "count")]
    pub count: usize,
    /// Share of their loss beside the subject's.
    #[serde(default = "weight")]
    pub weight: f64,
}

fn count() -> usize {
    20
}

fn weight() -> f64 {
    1.0
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self {
            loss: Loss::default(),
            dco_beta: 1000.0,
            min_snr_gamma: None,
            noise_offset: 0.0,
            prediction: None,
            zero_terminal_snr: false,
            timesteps: None,
        }
    }
}

impl ObjectiveConfig {
    /// What is changed of the base's noise schedule.
    pub(crate) fn change(&self) -> ScheduleChange {
        ScheduleChange {
            prediction_type: self.prediction,
            rescale_betas_zero_snr: self.zero_terminal_snr,
        }
    }

    pub(super) fn check(&self) -> Result<(), TrainError> {
        let refuse = |field, range| Err(TrainError::OutOfRange { field, range });
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !positive(self.dco_beta) {
            return refuse("objective.dco_beta", "more than 0");
        }
        if self.min_snr_gamma.is_some_and(|gamma| !positive(gamma)) {
            return refuse("objective.min_snr_gamma", "more than 0");
        }
        if !(self.noise_offset.is_finite() && self.noise_offset >= 0.0) {
            return refuse("objective.noise_offset", "0 or more");
        }
        self.check_timesteps(usize::MAX)
    }

    /// Refuses a range that is empty or that the base model was not trained on.
    pub(crate) fn check_timesteps(&self, trained: usize) -> Result<(), TrainError> {
        match self.timesteps {
            Some([first, end]) if first >= end || end > trained => Err(TrainError::OutOfRange {
                field: "objective.timesteps",
                range: "[first, end], first below end and end at most the base's number of timesteps",
            }),
            _ => Ok(()),
        }
    }
}

impl PriorConfig {
    pub(super) fn check(&self) -> Result<(), TrainError> {
        let refuse = |field, range| Err(TrainError::OutOfRange { field, range });
        if self.count == 0 {
            return refuse("prior.count", "at least 1");
        }
        if !(self.weight.is_finite() && self.weight >= 0.0) {
            return refuse("prior.weight", "0 or more");
        }
        Ok(())
    }
}
