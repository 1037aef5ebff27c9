//! Settings of the optimizer.

use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// How the learning rates change over a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Half a cosine from the full rate down to zero: the last steps settle instead of wandering.
    #[default]
    Cosine,
    /// A straight line from the full rate down to zero.
    Linear,
    /// The full rate throughout.
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

/// How everything flat moves: SODA's spectrum, LoRA's factors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlatOptimizer {
    /// At the rate that is set.
    #[default]
    AdamW,
    /// The same with moments of a byte a number, for adapters whose moments take room (LoRA, full).
    #[serde(rename = "adamw-8bit")]
    AdamW8bit,
    /// At a rate that it finds itself; `spectrum_lr` is a factor on it, 1 unless there is a reason.
    Prodigy,
}

/// Learning rates and clipping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Learning rate of the rotations (momentum Stiefel Adam).
    pub rotation_lr: f64,
    /// The optimizer of everything flat.
    pub flat: FlatOptimizer,
    /// Learning rate of everything flat: SODA's spectrum, LoRA's factors.
    pub spectrum_lr: f64,
    /// Weight decay of the same, towards the base.
    pub spectrum_weight_decay: f64,
    /// Largest norm of the gradient over all parameters.
    pub max_grad_norm: f64,
    /// How both rates change over the run.
    pub schedule: Schedule,
    /// Steps in which both rates rise from zero, before the schedule begins.
    pub warmup_steps: usize,
    /// Decay of the moving average that becomes the adapter; without it the last values do.
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
    /// The factor on both learning rates at `step`, from 0, of `steps`.
    pub fn factor(&self, step: usize, steps: usize) -> f64 {
        if step < self.warmup_steps {
            // From one part up, not from zero: a first step that moves nothing is a wasted one.
            return (step + 1) as f64 / (self.warmup_steps + 1) as f64;
        }
        self.schedule.factor(step - self.warmup_steps, steps.saturating_sub(self.warmup_steps))
    }

    pub(super) fn check(&self) -> Result<(), TrainError> {
        let refuse = |field, range| Err(TrainError::OutOfRange { field, range });
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
    /// Refuses a rate and an end that a part of the parameters cannot have of its own; `fields` are the names of the two
    /// settings, `prodigy` says what to do where one estimate is of all parameters.
    pub(super) fn check_own(
        &self,
        learning_rate: Option<f64>,
        stop_after: Option<f64>,
        fields: [&'static str; 2],
        prodigy: &'static str,
    ) -> Result<(), TrainError> {
        let [rate, end] = fields;
        if learning_rate.is_some_and(|rate| !rate.is_finite() || rate < 0.0) {
            return Err(TrainError::OutOfRange { field: rate, range: "0 or more" });
        }
        if stop_after.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
            let range = "more than 0 and at most 1";
            return Err(TrainError::OutOfRange { field: end, range });
        }
        let own = learning_rate.is_some() || stop_after.is_some();
        if own && self.flat == FlatOptimizer::Prodigy {
            return Err(TrainError::Conflict(prodigy));
        }
        Ok(())
    }
}

/// Whether `step`, from 0, of `steps` is before their share after which something stands still.
pub(super) fn is_before(share: Option<f64>, step: usize, steps: usize) -> bool {
    share.is_none_or(|share| (step as f64) < share * steps as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_stand_and_fall() {
        for schedule in [Schedule::Cosine, Schedule::Linear, Schedule::Constant] {
            let config = OptimizerConfig { warmup_steps: 3, schedule, ..Default::default() };
            let factors: Vec<f64> = (0..13).map(|step| config.factor(step, 13)).collect();
            assert_eq!(factors[..4], [0.25, 0.5, 0.75, 1.0], "{schedule:?}");
            assert!(factors[3..].windows(2).all(|pair| pair[1] <= pair[0]), "{factors:?}");
        }
        let half = |schedule: Schedule| schedule.factor(5, 10);
        assert!((half(Schedule::Cosine) - 0.5).abs() < 1e-12 && half(Schedule::Linear) == 0.5);
        // Warm-up longer than the run is a run of warm-up.
        let config = OptimizerConfig { warmup_steps: 9, ..Default::default() };
        assert!((0..5).all(|step| config.factor(step, 5) < 1.0));
    }
}
