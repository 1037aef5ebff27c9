//! Settings of the validation loss, and of what it decides.

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// The most timesteps of an image. Models are trained on 1000.
const MOST_TIMESTEPS: usize = 1000;

/// The validation loss: the loss on the same images, noise and timesteps at each measurement.
///
/// Its values can be compared with each other. Those of the training loss cannot, since every step draws
/// other timesteps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValidationConfig {
    /// Steps between two measurements. There is also one before the first step and one after the last. 0
    /// disables them.
    pub every: usize,
    /// The share of the images, from 0 up to but not including 1, that is measured instead of trained on. At
    /// 0 the training images are measured, and the loss says how well they are learnt.
    pub held_out: f64,
    /// Number of timesteps at which each image is measured, evenly spaced over those that are trained.
    pub timesteps: usize,
    /// Ends the run after so many measurements in a row without a new best one. 0 never does.
    pub early_stopping_patience: usize,
    /// What a measurement must be better by, to count as a new best one for `early_stopping_patience`.
    pub early_stopping_threshold: f64,
    /// Whether the adapter with the best measurement is the result, instead of the last one.
    pub load_best_model_at_end: bool,
    /// What `early_stopping_patience` and `load_best_model_at_end` go by.
    pub metric_for_best_model: BestMetric,
}

/// What adapters of one run are compared by. A loss is better if it is less, a score if it is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BestMetric {
    /// The validation loss of held-out images.
    #[default]
    Loss,
    /// The samples' similarity to the images of the subject, by DINO.
    Dino,
    /// The samples' similarity to the images of the subject, by CLIP.
    ClipI,
    /// The samples' similarity to their prompts, by CLIP.
    ClipT,
}

impl BestMetric {
    /// Whether judges measure it on samples, instead of the validation.
    pub fn is_score(self) -> bool {
        self != Self::Loss
    }
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self {
            every: 0,
            held_out: 0.0,
            timesteps: 8,
            early_stopping_patience: 0,
            early_stopping_threshold: 0.0,
            load_best_model_at_end: false,
            metric_for_best_model: BestMetric::Loss,
        }
    }
}

impl ValidationConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let refuse = |field, range| Err(ConfigError::OutOfRange { field, range });
        match () {
            () if !(1..=MOST_TIMESTEPS).contains(&self.timesteps) => {
                refuse("validation.timesteps", "from 1 to 1000")
            }
            () if !(0.0..1.0).contains(&self.held_out) => {
                refuse("validation.held_out", "from 0 up to, but not, 1")
            }
            () if !(0.0..=1e6).contains(&self.early_stopping_threshold) => {
                refuse("validation.early_stopping_threshold", "from 0 to 1e6")
            }
            () if self.chooses()
                && !self.metric_for_best_model.is_score()
                && (self.every == 0 || self.held_out == 0.0) =>
            {
                Err(ConfigError::Conflict(
                    "`early_stopping_patience` and `load_best_model_at_end` go by images that are not \
                     trained on: set `validation.every` and `validation.held_out` as well",
                ))
            }
            () if self.early_stopping_threshold > 0.0 && self.early_stopping_patience == 0 => {
                Err(ConfigError::Conflict(
                    "`validation.early_stopping_threshold` decides nothing: set \
                     `validation.early_stopping_patience` as well",
                ))
            }
            () if self.metric_for_best_model.is_score() && !self.chooses() => {
                Err(ConfigError::Conflict(
                    "`validation.metric_for_best_model` decides nothing: set \
                     `validation.load_best_model_at_end` or `validation.early_stopping_patience` as well",
                ))
            }
            () => Ok(()),
        }
    }

    /// Checks that there are measurements to choose from, in a run of `steps` steps: of validations, or of
    /// samples every `samples_every` steps with judges.
    pub(super) fn check_choice(
        &self,
        steps: usize,
        samples_every: usize,
        has_judges: bool,
    ) -> Result<(), ConfigError> {
        let by_score = self.chooses_by_score();
        let missing = match () {
            () if !self.chooses() => return Ok(()),
            () if !by_score && self.every >= steps => {
                "`validation.every` is not below `steps`, so that there is one measurement to choose from: \
                 lower it"
            }
            () if !by_score => return Ok(()),
            () if samples_every >= steps => {
                "`samples.every` is not below `steps`, so that there is one measurement to choose from: \
                 lower it"
            }
            () if samples_every == 0 => {
                "`validation.metric_for_best_model` is a score of samples: set `samples.every` as well"
            }
            () if !has_judges => {
                "`validation.metric_for_best_model` is a score of judges: set `judges` to their folder"
            }
            () => return Ok(()),
        };
        Err(ConfigError::Conflict(missing))
    }

    /// Whether the result depends on measurements.
    fn chooses(&self) -> bool {
        self.early_stopping_patience > 0 || self.load_best_model_at_end
    }

    /// Whether the result depends on scores of samples.
    pub fn chooses_by_score(&self) -> bool {
        self.chooses() && self.metric_for_best_model.is_score()
    }
}
