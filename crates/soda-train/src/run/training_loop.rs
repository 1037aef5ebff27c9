//! The steps of a run and what comes between them, in the order that all ranks keep.
//!
//! Ranks meet in sums of gradients, comparisons, broadcasts and samples. A rank in another order would hang,
//! or take other numbers for its own, so that one function calls them for rank 0 and for all others.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::TrainConfig;
use crate::error::{CheckpointError, TrainError};
use crate::run::checkpoint::Checkpoint;
use crate::run::due::{are_samples_due, has_lost_patience, is_validation_due, older_best};
use crate::run::history::History;
use crate::step::trainer::{StepData, Trainer};

/// The progress of a rank.
pub(crate) struct Progress<'a> {
    pub(crate) trainer: Trainer<'a>,
    pub(crate) history: History,
    /// The duration of the steps in seconds.
    pub(crate) seconds: f64,
}

impl<'a> Progress<'a> {
    /// The state of the checkpoint; that of `trainer` if there is no checkpoint.
    ///
    /// # Errors
    /// A checkpoint of other data, or `other_settings` if it does not fit the trainer.
    pub(crate) fn restored(
        trainer: Trainer<'a>,
        checkpoint: Option<Checkpoint>,
        config: &TrainConfig,
        data: &StepData<'_>,
        other_settings: impl FnOnce() -> TrainError,
    ) -> Result<Self, TrainError> {
        let Some(Checkpoint { state, history, seconds, data: digest, .. }) = checkpoint else {
            return Ok(Self { trainer, history: History::default(), seconds: 0.0 });
        };
        if digest != data.digest() {
            return Err(CheckpointError::OtherData(config.data.clone()).into());
        }
        let trainer = trainer.restored(state).ok_or_else(other_settings)?;
        Ok(Self { trainer, history, seconds })
    }

    /// The number of finished steps.
    pub(crate) fn done(&self) -> usize {
        self.trainer.steps_done()
    }
}

/// What a rank does in a run: rank 0 measures, draws and writes, and the others do their share.
pub(crate) trait Role<'a> {
    /// The settings of the run.
    fn config(&self) -> &TrainConfig;

    /// Tells that the steps begin.
    fn begin(&mut self, _progress: &Progress<'a>) {}

    /// Does one step and adds it to the history. Returns whether a rank was asked to stop.
    fn step(&mut self, progress: &mut Progress<'a>) -> Result<bool, TrainError>;

    /// Tells of the newest step.
    fn report(&mut self, progress: &Progress<'a>) -> Result<(), TrainError>;

    /// Measures the validation loss and adds it to the history.
    fn validate(&mut self, progress: &mut Progress<'a>) -> Result<(), TrainError>;

    /// Whether the samples after the steps of a checkpoint are yet to be drawn. All ranks have one answer.
    fn misses_samples(&mut self, progress: &Progress<'a>) -> Result<bool, TrainError>;

    /// Whether somebody asks for samples that are not due.
    fn is_asked_for_samples(&mut self, _progress: &Progress<'a>) -> bool {
        false
    }

    /// Draws samples, and adds their score to the history if the adapter is chosen by it.
    fn sample(&mut self, progress: &mut Progress<'a>) -> Result<(), TrainError>;

    /// Stores the state if its measurement is the best.
    fn keep_if_best(&mut self, _progress: &Progress<'a>) -> Result<(), TrainError> {
        Ok(())
    }

    /// Stores what is due after a step and its samples, and fails if the run stops here.
    fn settle(
        &mut self,
        progress: &Progress<'a>,
        sampled: Result<(), TrainError>,
        ending: Ending,
    ) -> Result<(), TrainError>;

    /// Tells why the run ends before its last step.
    fn end(&mut self, _progress: &Progress<'a>) {}

    /// The trainer with the state of the best measurement, which is that of an earlier step.
    fn restore_best(
        &mut self,
        trainer: Trainer<'a>,
        step: usize,
    ) -> Result<Trainer<'a>, TrainError>;
}

/// How a run ends at a step.
#[derive(Clone, Copy)]
pub(crate) struct Ending {
    /// A rank was asked to stop before the last step.
    pub(crate) stopped: bool,
    /// The step is the last one.
    pub(crate) last: bool,
}

/// Runs to the last step from `progress`. Returns the parameters with which the run ends.
pub(crate) fn run<'a>(
    role: &mut impl Role<'a>,
    mut progress: Progress<'a>,
    stop: &AtomicBool,
) -> Result<Progress<'a>, TrainError> {
    let total = role.config().steps;
    progress.trainer.agree()?;
    role.begin(&progress);
    if progress.history.steps.is_empty() {
        role.validate(&mut progress)?;
    }
    // A run that was stopped while it drew these samples has stored the step without them.
    if are_samples_due(role.config(), progress.done()) && role.misses_samples(&progress)? {
        role.sample(&mut progress)?;
        role.keep_if_best(&progress)?;
    }
    while progress.done() < total && !has_lost_patience(role.config(), &progress.history) {
        let stopping = role.step(&mut progress)?;
        if stopping {
            // Also where another rank was asked, so that no rank begins to draw samples.
            stop.store(true, Ordering::Relaxed);
        }
        role.report(&progress)?;
        let done = progress.done();
        if is_validation_due(role.config(), done) {
            role.validate(&mut progress)?;
        }
        let asked = role.is_asked_for_samples(&progress);
        let draws = asked || are_samples_due(role.config(), done);
        let sampled = if draws { role.sample(&mut progress) } else { Ok(()) };
        role.keep_if_best(&progress)?;
        let last = done == total || has_lost_patience(role.config(), &progress.history);
        role.settle(&progress, sampled, Ending { stopped: stopping && !last, last })?;
    }
    role.end(&progress);
    let Progress { trainer, history, seconds } = progress;
    let trainer = match older_best(role.config(), &history, trainer.steps_done()) {
        Some(step) => role.restore_best(trainer, step)?,
        None => trainer,
    };
    Ok(Progress { trainer, history, seconds })
}
