//! Settings of the loss.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use soda_models::scheduler::{PredictionType, SchedulerOverrides};

use crate::error::ConfigError;

/// The loss of one sample. `step/loss.rs` has the formulas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// The mean squared error of the prediction.
    #[default]
    Mse,
    /// Direct Consistency Optimization (Lee et al., arXiv 2402.12004): a lower error than the frozen
    /// network's, which counts less the lower it already is.
    Dco,
}

/// The loss, its weights over the timesteps, and the noise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectiveConfig {
    /// The loss of one sample.
    pub loss: Loss,
    /// β of DCO: the larger, the sooner a sample that is better than under the frozen network stops counting.
    pub dco_beta: f64,
    /// γ of Min-SNR weighting (Hang et al., arXiv 2303.09556). Without it all timesteps have the same weight.
    pub min_snr_gamma: Option<f64>,
    /// Offset noise: the standard deviation of a shift of whole channels (Guttenberg, 2023).
    pub noise_offset: f64,
    /// The prediction type that is trained, `epsilon` or `v`. The default is the base model's.
    pub prediction: Option<PredictionType>,
    /// Whether the noise schedule is rescaled to zero terminal SNR (Lin et al., arXiv 2305.08891), which
    /// needs `v`.
    pub zero_terminal_snr: bool,
    /// The range `[first, end]` of the trained timesteps, without `end`. The default is all of them.
    pub timesteps: Option<[usize; 2]>,
    /// Mean and standard deviation of the logit of the timesteps, as a share of their range (Esser et al.,
    /// arXiv 2403.03206). The default is a uniform density.
    pub logit_normal: Option<[f64; 2]>,
    /// The factor by which the odds of a timestep, as a share of the range, are multiplied. Above 1 noisier
    /// timesteps are trained more. The default is 1.
    pub timestep_shift: Option<f64>,
}

/// The most class images that are generated. They take days on a GPU.
const MOST_PRIOR_IMAGES: usize = 100_000;

/// Prior preservation (DreamBooth, Ruiz et al., arXiv 2208.12242): images of the class are trained on beside
/// the subject's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriorConfig {
    /// The prompt and caption of the class images, such as `a photo of a mug`.
    pub prompt: String,
    /// A folder of class images. Without it the base model generates them.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// Number of images that the base model generates.
    #[serde(default = "count")]
    pub count: usize,
    /// The weight of their loss, where that of the subject's images is 1.
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
            logit_normal: None,
            timestep_shift: None,
        }
    }
}

impl ObjectiveConfig {
    /// The changes of the base model's noise schedule.
    pub(crate) fn scheduler_overrides(&self) -> SchedulerOverrides {
        SchedulerOverrides {
            prediction_type: self.prediction,
            rescale_betas_zero_snr: self.zero_terminal_snr,
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let refuse = |field, range| Err(ConfigError::OutOfRange { field, range });
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !positive(self.dco_beta) {
            return refuse("objective.dco_beta", "more than 0");
        }
        if self.loss != Loss::Dco && self.dco_beta != Self::default().dco_beta {
            return Err(ConfigError::Conflict(
                "`objective.dco_beta` belongs to `objective.loss = \"dco\"`: set that, or remove \
                 `objective.dco_beta`",
            ));
        }
        if self.min_snr_gamma.is_some_and(|gamma| !positive(gamma)) {
            return refuse("objective.min_snr_gamma", "more than 0");
        }
        if !(self.noise_offset.is_finite() && self.noise_offset >= 0.0) {
            return refuse("objective.noise_offset", "0 or more");
        }
        let [mean, std] = self.logit_normal.unwrap_or([0.0, 1.0]);
        if !(mean.abs() <= 20.0 && std > 0.0 && std <= 20.0) {
            let range = "[mean, standard deviation], from -20 to 20 and above 0 to 20";
            return refuse("objective.logit_normal", range);
        }
        if !self.timestep_shift.is_none_or(|shift| (1e-3..=1e3).contains(&shift)) {
            return refuse("objective.timestep_shift", "from 0.001 to 1000");
        }
        self.check_timesteps(usize::MAX)
    }

    /// Returns an error if the range is empty or exceeds the base model's `trained` timesteps.
    pub(crate) fn check_timesteps(&self, trained: usize) -> Result<(), ConfigError> {
        match self.timesteps {
            Some([first, end]) if first >= end || end > trained => Err(ConfigError::OutOfRange {
                field: "objective.timesteps",
                range: "[first, end], first below end and end at most the base's number of timesteps",
            }),
            _ => Ok(()),
        }
    }
}

impl PriorConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let refuse = |field, range| Err(ConfigError::OutOfRange { field, range });
        if !(1..=MOST_PRIOR_IMAGES).contains(&self.count) {
            return refuse("prior.count", "from 1 to 100000");
        }
        if !(self.weight.is_finite() && self.weight >= 0.0) {
            return refuse("prior.weight", "0 or more");
        }
        Ok(())
    }
}
