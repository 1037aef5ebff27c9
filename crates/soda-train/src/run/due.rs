//! What is due after a step, by the settings and the measurements. All ranks decide alike.

use crate::config::{BestMetric, TrainConfig};
use crate::run::history::History;

/// What measures a run, in a sentence.
pub(crate) fn measured(metric: BestMetric) -> &'static str {
    match metric {
        BestMetric::Loss => "the validation loss",
        BestMetric::Dino => "the samples' DINO",
        BestMetric::ClipI => "the samples' CLIP-I",
        BestMetric::ClipT => "the samples' CLIP-T",
    }
}

/// Whether the settings end the run by its measurements.
pub(crate) fn has_lost_patience(config: &TrainConfig, history: &History) -> bool {
    let validation = &config.validation;
    let metric = validation.metric_for_best_model;
    let since = history.measured_since_best(metric, validation.early_stopping_threshold);
    validation.early_stopping_patience > 0 && since >= validation.early_stopping_patience
}

/// Whether a checkpoint is written after `done` steps.
pub(crate) fn is_checkpoint_due(config: &TrainConfig, done: usize) -> bool {
    is_due(config.checkpoints.every, done)
}

/// Whether the validation loss is measured after `done` steps, if there is a validation.
pub(crate) fn is_validation_due(config: &TrainConfig, done: usize) -> bool {
    is_due(config.validation.every, done) || done == config.steps
}

/// Whether samples are drawn during training after `done` steps. After all steps they are, if a score of
/// them chooses the adapter.
pub(crate) fn are_samples_due(config: &TrainConfig, done: usize) -> bool {
    let last = done == config.steps;
    let is_due = if last {
        config.validation.chooses_by_score()
    } else {
        is_due(config.samples.every, done)
    };
    is_due && done > 0
}

/// Whether a score of the samples after `done` steps is one that the adapter is chosen by.
pub(crate) fn is_score_due(config: &TrainConfig, done: usize) -> bool {
    config.validation.chooses_by_score() && are_samples_due(config, done)
}

/// The step of the best state, if the run ends with an older one than that after `done` steps.
pub(crate) fn older_best(config: &TrainConfig, history: &History, done: usize) -> Option<usize> {
    let validation = &config.validation;
    let best = history.best_step(validation.metric_for_best_model)?;
    (validation.load_best_model_at_end && best < done).then_some(best)
}

/// Whether an action with this interval in steps is due after `done` steps. An interval of 0 means never.
fn is_due(interval: usize, done: usize) -> bool {
    interval > 0 && done.is_multiple_of(interval)
}
