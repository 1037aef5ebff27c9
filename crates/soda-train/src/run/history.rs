//! The metrics of all steps of a run, for `loss.csv` and the charts of the report.

use std::fmt::Write as _;

use crate::config::BestMetric;
use crate::step::metrics::StepMetrics;

/// The validation after some steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValidationMetrics {
    /// The number of finished steps.
    pub step: usize,
    /// The validation loss.
    pub loss: f32,
    /// The largest `|QᵀQ - I|` over all factors of rotations.
    pub orthogonality: f32,
}

impl ValidationMetrics {
    /// The values with their names in `loss.csv` and TensorBoard.
    pub(crate) fn named(&self) -> [(&'static str, f32); 2] {
        [("validation_loss", self.loss), ("orthogonality", self.orthogonality)]
    }
}

/// The score of the samples after some steps, by which the adapter of the run is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepScore {
    /// The number of finished steps.
    pub step: usize,
    /// The mean score.
    pub score: f32,
}

/// The metrics of all finished steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// One entry for each step.
    pub steps: Vec<StepMetrics>,
    /// One entry for each validation, in the order of the steps.
    pub validation: Vec<ValidationMetrics>,
    /// The scores of the samples that the settings ask for, in the order of the steps. Empty where the
    /// settings do not choose by a score.
    pub scores: Vec<StepScore>,
}

impl History {
    /// The table of `loss.csv`, one line for each step. A validation is on the line of the step that it
    /// follows; the validation of the base model is on a line of step 0.
    pub(crate) fn csv(&self) -> String {
        let names = StepMetrics::default().named().map(|(name, _)| name).join(",");
        let mut text = format!("step,{names},validation_loss,orthogonality\n");
        let validation = |step: usize| {
            let validation = self.validation.iter().find(|metrics| metrics.step == step);
            validation.map_or_else(
                || ",".to_owned(),
                |metrics| format!("{},{}", metrics.loss, metrics.orthogonality),
            )
        };
        // Writing to a String cannot fail.
        if self.validation.first().is_some_and(|first| first.step == 0) {
            let _ = writeln!(text, "0{}{}", ",".repeat(StepMetrics::COUNT + 1), validation(0));
        }
        for (index, values) in self.steps.iter().map(StepMetrics::named).enumerate() {
            let (step, validation) = (index + 1, validation(index + 1));
            let values = values.map(|(_, value)| value.to_string()).join(",");
            let _ = writeln!(text, "{step},{values},{validation}");
        }
        text
    }

    /// Adds a score. A resumed run may draw samples again, so the score of a step replaces an earlier one.
    pub(crate) fn add_score(&mut self, score: StepScore) {
        self.scores.retain(|of| of.step < score.step);
        self.scores.push(score);
    }

    /// The step with the best measurement after some training. `None` before the first one.
    pub fn best_step(&self, metric: BestMetric) -> Option<usize> {
        // A measurement that is no number compares as the worst.
        let order = |value: f32| if value.is_nan() { f32::INFINITY } else { value };
        let measured = self.measured(metric).into_iter();
        measured.min_by(|(_, a), (_, b)| order(*a).total_cmp(&order(*b))).map(|(step, _)| step)
    }

    /// How many measurements in a row, up to the newest, were not better than the best one before by more
    /// than `threshold`.
    pub fn measured_since_best(&self, metric: BestMetric, threshold: f64) -> usize {
        let mut least = f64::INFINITY;
        let mut since = 0;
        for (_, value) in self.measured(metric) {
            let value = f64::from(value);
            since = if value < least - threshold { 0 } else { since + 1 };
            if since == 0 {
                least = value;
            }
        }
        since
    }

    /// The steps and values of all measurements after some training. The least value is the best.
    fn measured(&self, metric: BestMetric) -> Vec<(usize, f32)> {
        let all: Vec<(usize, f32)> = if metric.is_score() {
            self.scores.iter().map(|of| (of.step, -of.score)).collect()
        } else {
            self.validation.iter().map(|of| (of.step, of.loss)).collect()
        };
        all.into_iter().filter(|(step, _)| *step > 0).collect()
    }

    /// The loss of every step.
    pub fn losses(&self) -> Vec<f32> {
        self.steps.iter().map(|step| step.loss).collect()
    }
}

/// The number of steps in a [`running_mean`]. The loss of a step depends mostly on the sampled timestep.
pub const LOSS_WINDOW: usize = 20;

/// The mean of each value and up to `LOSS_WINDOW - 1` values before it.
pub fn running_mean(values: &[f32]) -> Vec<f32> {
    (0..values.len())
        .map(|end| {
            let window = &values[(end + 1).saturating_sub(LOSS_WINDOW)..=end];
            window.iter().sum::<f32>() / window.len() as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validated(losses: &[f32]) -> History {
        let metrics = |(step, loss): (usize, &f32)| ValidationMetrics {
            step,
            loss: *loss,
            orthogonality: 0.0,
        };
        History {
            validation: losses.iter().enumerate().map(metrics).collect(),
            ..History::default()
        }
    }

    #[test]
    fn the_best_is_the_least_loss_after_training_and_never_nan() {
        let best = |losses: &[f32]| validated(losses).best_step(BestMetric::Loss);
        assert_eq!(best(&[]), None);
        assert_eq!(best(&[0.1]), None);
        assert_eq!(best(&[0.1, 0.5, 0.3, 0.4]), Some(2));
        assert_eq!(best(&[0.1, 0.3, 0.3]), Some(1));
        for nan in [f32::NAN, -f32::NAN] {
            assert_eq!(best(&[0.1, nan, 0.4, nan]), Some(2));
        }
    }

    #[test]
    fn patience_counts_validations_without_a_new_least_loss() {
        let since = |losses: &[f32], threshold| {
            validated(losses).measured_since_best(BestMetric::Loss, threshold)
        };
        assert_eq!(since(&[0.1, 0.5, 0.4, 0.3], 0.0), 0);
        assert_eq!(since(&[0.1, 0.5, 0.4, 0.4, 0.41], 0.0), 2);
        assert_eq!(since(&[0.1, 0.5, f32::NAN, f32::NAN], 0.0), 2);
        assert_eq!(since(&[0.1, f32::NAN, 0.5], 0.0), 0);
        // Each fall is below the threshold, but not their sum.
        assert_eq!(since(&[0.1, 0.5, 0.45, 0.41], 0.08), 0);
        assert_eq!(since(&[0.1, 0.5, 0.45, 0.43], 0.08), 2);
    }

    /// The losses say the opposite.
    #[test]
    fn the_best_score_is_the_greatest() {
        let scored = |scores: &[f32]| {
            let score =
                |(index, score): (usize, &f32)| StepScore { step: 5 * (index + 1), score: *score };
            let scores = scores.iter().enumerate().map(score).collect();
            History { scores, ..validated(&[0.9, 0.1, 0.2, 0.3]) }
        };
        let best = |scores: &[f32]| scored(scores).best_step(BestMetric::Dino);
        assert_eq!(best(&[]), None);
        assert_eq!(best(&[0.1, 0.5, 0.3]), Some(10));
        assert_eq!(best(&[-0.2, -0.1, f32::NAN, -f32::NAN]), Some(10));
        assert_eq!(best(&[f32::NAN, 0.5, 0.5]), Some(10));
        let since = |scores: &[f32]| scored(scores).measured_since_best(BestMetric::Dino, 0.05);
        assert_eq!(since(&[0.1, 0.2, 0.3]), 0);
        assert_eq!(since(&[0.1, 0.3, 0.34, 0.32]), 2);
        assert_eq!(since(&[0.1, 0.3, f32::NAN]), 1);
    }

    #[test]
    fn the_running_mean_of_a_constant_is_the_constant_and_it_lags_behind_a_step() {
        assert_eq!(running_mean(&[2.0; 50]), vec![2.0; 50]);
        let mut step = vec![0.0; 30];
        step.extend([1.0; 30]);
        let mean = running_mean(&step);
        assert_eq!((mean[29], mean[30], mean[49]), (0.0, 0.05, 1.0));
    }

    #[test]
    fn the_table_has_each_validation_on_the_line_of_its_step() {
        let step = |loss| StepMetrics::from_values([loss, 2.0, 0.5, 0.25, 0.125, 0.0625]);
        let measured = |(step, loss)| ValidationMetrics { step, loss, orthogonality: 0.125 };
        let validation = [(0, 0.75), (2, 0.5)].map(measured).to_vec();
        let steps = vec![step(1.0), step(0.5)];
        let history = History { steps, validation, ..History::default() };
        let expected = "step,loss,grad_norm,rotation_lr,flat_lr,text_lr,token_lr,validation_loss,orthogonality\n\
                        0,,,,,,,0.75,0.125\n1,1,2,0.5,0.25,0.125,0.0625,,\n2,0.5,2,0.5,0.25,0.125,0.0625,0.5,0.125\n";
        assert_eq!(history.csv(), expected);
    }
}
