//! Settings of the optimizers and their learning rates.

use serde::{Deserialize, Serialize};
use soda_optim::{AdapterOptimizerConfig, FlatOptimizer};

use crate::error::ConfigError;

/// The learning-rate schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Half a cosine from the full rate to zero.
    #[default]
    Cosine,
    /// A straight line from the full rate to zero.
    Linear,
    /// The full rate at all steps.
    Constant,
}

impl Schedule {
    /// The factor on the learning rates at `step`, from 0, of `steps`.
    pub fn factor(self, step: usize, steps: usize) -> f64 {
        let done = step as f64 / steps.max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Linear => 1.0 - done,
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
    }
}

/// Optimizers, learning rates, gradient clipping and the moving average.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The learning rate of the rotations, which are trained on the Stiefel manifold.
    pub rotation_lr: f64,
    /// The optimizer of the flat parameters.
    pub flat: FlatOptimizer,
    /// The learning rate of the flat parameters: SODA's spectrum, LoRA's factors.
    pub spectrum_lr: f64,
    /// Weight decay of the flat parameters, which pulls the weights towards the base model.
    pub spectrum_weight_decay: f64,
    /// The norm to which the gradient over all parameters is clipped.
    pub max_grad_norm: f64,
    /// The schedule of all learning rates.
    pub schedule: Schedule,
    /// Number of warm-up steps, in which the learning rates rise linearly before the schedule begins.
    pub warmup_steps: usize,
    /// Decay of the exponential moving average (EMA) of the parameters, which becomes the adapter. Without it
    /// the last parameters do.
    pub ema_decay: Option<f64>,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            rotation_lr: 5e-3,
            flat: FlatOptimizer::default(),
            spectrum_lr: 5e-3,
            spectrum_weight_decay: 1e-4,
            max_grad_norm: 1.0,
            schedule: Schedule::default(),
            warmup_steps: 0,
            ema_decay: None,
        }
    }
}

impl OptimizerConfig {
    /// The factor on the learning rates at `step`, from 0, of `steps`: warm-up, then the schedule.
    pub fn factor(&self, step: usize, steps: usize) -> f64 {
        if step < self.warmup_steps {
            // The first factor is above zero, since a step at rate zero would be wasted.
            return (step + 1) as f64 / (self.warmup_steps + 1) as f64;
        }
        self.schedule.factor(step - self.warmup_steps, steps.saturating_sub(self.warmup_steps))
    }

    /// The settings of the optimizer itself, without the schedule.
    pub(crate) fn adapter_optimizer(&self) -> AdapterOptimizerConfig {
        AdapterOptimizerConfig {
            rotation_lr: self.rotation_lr,
            flat_optimizer: self.flat,
            flat_lr: self.spectrum_lr,
            flat_weight_decay: self.spectrum_weight_decay,
            max_grad_norm: self.max_grad_norm,
            lr_warmup: self.warmup_steps > 0,
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let refuse = |field, range| Err(ConfigError::OutOfRange { field, range });
        let rate = |value: f64| value.is_finite() && value >= 0.0;
        match () {
            () if !rate(self.rotation_lr) => refuse("optimizer.rotation_lr", "0 or more"),
            () if !rate(self.spectrum_lr) => refuse("optimizer.spectrum_lr", "0 or more"),
            () if self.flat == FlatOptimizer::Prodigy && self.spectrum_lr < 0.1 => refuse(
                "optimizer.spectrum_lr",
                "about 1 with Prodigy, which finds the rate itself; set optimizer.spectrum_lr=1",
            ),
            () if !rate(self.spectrum_weight_decay) => {
                refuse("optimizer.spectrum_weight_decay", "0 or more")
            }
            () if self.max_grad_norm.is_nan() || self.max_grad_norm <= 0.0 => {
                refuse("optimizer.max_grad_norm", "more than 0")
            }
            () if self.ema_decay.is_some_and(|decay| !(0.0..1.0).contains(&decay)) => {
                refuse("optimizer.ema_decay", "from 0 up to, but not, 1")
            }
            () => Ok(()),
        }
    }
}

impl OptimizerConfig {
    /// Checks the learning rate and the end of training of one parameter group.
    ///
    /// `fields` are the paths of the two settings. `prodigy` is the message if both optimizer and group
    /// exclude each other, since Prodigy has one estimate for all parameters.
    pub(super) fn check_group(
        &self,
        learning_rate: Option<f64>,
        stop_after: Option<f64>,
        fields: [&'static str; 2],
        prodigy: &'static str,
    ) -> Result<(), ConfigError> {
        let [rate, end] = fields;
        if learning_rate.is_some_and(|rate| !rate.is_finite() || rate < 0.0) {
            return Err(ConfigError::OutOfRange { field: rate, range: "0 or more" });
        }
        if stop_after.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
            let range = "more than 0 and at most 1";
            return Err(ConfigError::OutOfRange { field: end, range });
        }
        let has_own = learning_rate.is_some() || stop_after.is_some();
        if has_own && self.flat == FlatOptimizer::Prodigy {
            return Err(ConfigError::Conflict(prodigy));
        }
        Ok(())
    }
}

/// Whether `step`, from 0, of `steps` is within the first `share` of the steps. Always true without a share.
pub(super) fn is_before(share: Option<f64>, step: usize, steps: usize) -> bool {
    share.is_none_or(|share| (step as f64) < share * steps as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_rates_rise_and_then_never_rise_again() {
        for schedule in [Schedule::Cosine, Schedule::Linear, Schedule::Constant] {
            let config = OptimizerConfig { warmup_steps: 3, schedule, ..Default::default() };
            let factors: Vec<f64> = (0..13).map(|step| config.factor(step, 13)).collect();
            assert_eq!(factors[..4], [0.25, 0.5, 0.75, 1.0], "{schedule:?}");
            assert!(factors[3..].windows(2).all(|pair| pair[1] <= pair[0]), "{factors:?}");
        }
        let half = |schedule: Schedule| schedule.factor(5, 10);
        assert!((half(Schedule::Cosine) - 0.5).abs() < 1e-12 && half(Schedule::Linear) == 0.5);
        // A warm-up longer than the run never ends.
        let config = OptimizerConfig { warmup_steps: 9, ..Default::default() };
        assert!((0..5).all(|step| config.factor(step, 5) < 1.0));
    }
}
