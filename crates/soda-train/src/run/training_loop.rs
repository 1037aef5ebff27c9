//! All training steps of a run, with validation, snapshots and checkpoints in between.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::Tensor;
use soda_adapters::{Geometry, Method, NamedParam, for_inference, named_params};
use soda_distributed::DistributedError;
use soda_linalg::stiefel::orthogonality_error;
use soda_models::image::grid;
use soda_models::pipeline::Networks;
use soda_pipeline::{Header, counted};
use tracing::info_span;

use crate::config::TrainConfig;
use crate::error::{CheckpointError, TrainError};
use crate::eval::sampling::Sampler;
use crate::eval::snapshots::{snapshot_grid, write_snapshot};
use crate::eval::validation::Validation;
use crate::event::{Event, SAMPLING, TRAINING};
use crate::output::event_log::{EventLog, LogEntry, Values};
use crate::output::run_folder::RunFolder;
use crate::output::tensorboard::Events;
use crate::run::checkpoint::Checkpoint;
use crate::run::due::{
    are_samples_due, has_lost_patience, is_checkpoint_due, is_score_due, is_validation_due,
    measured, older_best,
};
use crate::run::fingerprint::RunFingerprint;
use crate::run::history::{History, StepScore, ValidationMetrics};
use crate::run::rank_start;
use crate::step::adapted_networks::AdaptedNetworks;
use crate::step::metrics::StepMetrics;
use crate::step::ranks::Ranks;
use crate::step::trainer::{StepData, Trainer};

/// Everything that the training steps of a run need.
pub(crate) struct TrainingLoop<'a> {
    pub(crate) config: &'a TrainConfig,
    pub(crate) folder: &'a RunFolder,
    pub(crate) header: &'a Header,
    pub(crate) adapted: &'a AdaptedNetworks,
    pub(crate) data: StepData<'a>,
    /// The validation, if the settings ask for it.
    pub(crate) validation: Option<Validation>,
    /// The base model and the settings, for checkpoints.
    pub(crate) fingerprint: &'a RunFingerprint,
    /// TensorBoard's event file, if the settings ask for it.
    pub(crate) events: Option<&'a mut Events>,
    /// The log of the run.
    pub(crate) log: &'a EventLog,
    /// The processes that share the steps.
    pub(crate) ranks: &'a Ranks,
}

/// The result of all steps.
pub(crate) struct TrainedRun {
    /// The adapted networks on a plain device.
    pub(crate) networks: Networks,
    pub(crate) history: History,
    /// The duration of the steps in seconds.
    pub(crate) seconds: f64,
}

/// The progress of the loop.
struct Progress<'a> {
    trainer: Trainer<'a>,
    history: History,
    seconds: f64,
}

impl<'a> TrainingLoop<'a> {
    /// Runs to the last step, from `checkpoint` if there is one.
    pub(crate) fn run(
        mut self,
        trainer: Trainer<'a>,
        checkpoint: Option<Checkpoint>,
        sampler: &mut Sampler<'_>,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<TrainedRun, TrainError> {
        let digest = self.data.digest();
        let mut progress = self.restore(trainer, checkpoint, &digest)?;
        let total = self.config.steps;
        progress.trainer.agree()?;
        let done = progress.trainer.steps_done();
        self.log.write(LogEntry::Started { step: done, steps: total });
        if progress.history.steps.is_empty() {
            self.validate(&mut progress)?;
        }
        // A run that was stopped while it drew these samples has stored the step without them.
        if are_samples_due(self.config, done) {
            let has_score = progress.history.scores.iter().any(|of| of.step == done);
            let has_score = has_score || !is_score_due(self.config, done);
            let missing = !(self.has_snapshot(done) && has_score);
            rank_start::give_flag(self.ranks, missing)?;
            if missing {
                self.snapshot(&mut progress, sampler, on_event)?;
                self.keep_if_best(&progress, &digest)?;
            }
        }
        while progress.trainer.steps_done() < total && !self.has_lost_patience(&progress.history) {
            let (metrics, stopping) = match self.step(&mut progress, sampler, stop) {
                Err(TrainError::Ranks(lost)) => return Err(self.lost(&progress, &digest, lost)),
                done => done?,
            };
            if stopping {
                // Also where another rank was asked, so that no rank begins to draw samples.
                stop.store(true, Ordering::Relaxed);
            }
            let done = progress.trainer.steps_done();
            self.report_step(&progress, metrics, on_event)?;
            if is_validation_due(self.config, done) {
                self.validate(&mut progress)?;
            }
            let (sample, save) = (RunFolder::SAMPLE, RunFolder::SAVE);
            let [sample, save] = [sample, save].map(|name| self.folder.takes_request(name));
            let sample = sample && self.draws_alone(on_event);
            let mut sampled = Ok(());
            if (sample && done < total) || are_samples_due(self.config, done) {
                sampled = self.snapshot(&mut progress, sampler, on_event);
            }
            self.keep_if_best(&progress, &digest)?;
            if let Err(TrainError::Ranks(lost)) = sampled {
                return Err(self.lost(&progress, &digest, lost));
            }
            let stopped = matches!(sampled, Err(TrainError::StoppedSampling { .. }));
            // The last step is stored as well, since drawing its samples may be stopped.
            let last = done == total || self.has_lost_patience(&progress.history);
            let stopping = stopping && !last;
            if stopping || stopped || last || save || is_checkpoint_due(self.config, done) {
                self.write_checkpoint(&progress, &digest)?;
            }
            if save {
                self.write_adapter(&progress.trainer.networks(), sampler)?;
                on_event(Event::Note(&format!("wrote the adapter of step {done}")));
            }
            sampled?;
            if stopping {
                let folder = self.folder.path().to_owned();
                return Err(TrainError::Stopped { step: done, folder });
            }
        }
        if self.has_lost_patience(&progress.history) && progress.trainer.steps_done() < total {
            let validation = &self.config.validation;
            let text = format!(
                "stopped at step {}: {} had no new best value in {}",
                progress.trainer.steps_done(),
                measured(validation.metric_for_best_model),
                counted(validation.early_stopping_patience, "measurement")
            );
            on_event(Event::Note(&text));
        }
        let Progress { trainer, history, seconds } = progress;
        let trainer = match older_best(self.config, &history, trainer.steps_done()) {
            Some(step) => {
                let metric = measured(self.config.validation.metric_for_best_model);
                on_event(Event::Note(&format!(
                    "the adapter of step {step} is the best by {metric}"
                )));
                self.restore_best(trainer, step)?
            }
            None => trainer,
        };
        Ok(TrainedRun { networks: trainer.networks(), history, seconds })
    }

    /// Whether this process draws samples alone, so that it may when it is asked. Otherwise all ranks draw
    /// them, at the steps that all know.
    fn draws_alone(&self, on_event: &mut dyn FnMut(Event<'_>)) -> bool {
        let alone = self.ranks.world() == 1;
        if !alone {
            on_event(Event::Warning(
                "a run of several processes draws no samples on request: set `samples.every`",
            ));
        }
        alone
    }

    /// Whether the settings end the run by its measurements.
    fn has_lost_patience(&self, history: &History) -> bool {
        has_lost_patience(self.config, history)
    }

    /// Stores the state whose measurement is the newest and the best, if the run ends with it.
    fn keep_if_best(&self, progress: &Progress<'_>, digest: &str) -> Result<(), TrainError> {
        let validation = &self.config.validation;
        let best = progress.history.best_step(validation.metric_for_best_model);
        if validation.load_best_model_at_end && best == Some(progress.trainer.steps_done()) {
            let _span = info_span!("write checkpoint").entered();
            let folder = self.folder.file(RunFolder::CHECKPOINTS);
            self.checkpoint(progress, digest).write_best(&folder)?;
        }
        Ok(())
    }

    /// The trainer with the state of the best measurement.
    fn restore_best(&self, trainer: Trainer<'a>, step: usize) -> Result<Trainer<'a>, TrainError> {
        let folder = self.folder.file(RunFolder::CHECKPOINTS);
        let best = Checkpoint::read_best(&folder, step)?;
        rank_start::give_checkpoint(self.ranks, Some(&best))?;
        trainer.restored(best.state).ok_or_else(|| CheckpointError::OtherSettings(folder).into())
    }

    /// The state of the checkpoint; that of `trainer` if there is no checkpoint.
    fn restore(
        &self,
        trainer: Trainer<'a>,
        checkpoint: Option<Checkpoint>,
        digest: &str,
    ) -> Result<Progress<'a>, TrainError> {
        let Some(Checkpoint { state, history, seconds, data, .. }) = checkpoint else {
            return Ok(Progress { trainer, history: History::default(), seconds: 0.0 });
        };
        if data != digest {
            return Err(CheckpointError::OtherData(self.config.data.clone()).into());
        }
        let trainer = trainer.restored(state);
        let checkpoints =
            || CheckpointError::OtherSettings(self.folder.file(RunFolder::CHECKPOINTS));
        let trainer = trainer.ok_or_else(checkpoints)?;
        Ok(Progress { trainer, history, seconds })
    }

    /// Does one step. If the step fails, writes the last adapter that gave a finite loss.
    fn step(
        &self,
        progress: &mut Progress<'_>,
        sampler: &Sampler<'_>,
        stop: &AtomicBool,
    ) -> Result<(StepMetrics, bool), TrainError> {
        let _span = info_span!("step").entered();
        let started = Instant::now();
        let done = progress.trainer.step_unless(&self.data, stop);
        let (metrics, stop) = match done.and_then(|done| progress.trainer.agree().map(|()| done)) {
            Err(error) => {
                let path = self.folder.file(RunFolder::ADAPTER);
                let Some(error) = error.keeping(&path) else { return Err(error) };
                self.write_adapter(&progress.trainer.last_finite(), sampler)?;
                return Err(error);
            }
            Ok(done) => done,
        };
        progress.seconds += started.elapsed().as_secs_f64();
        progress.history.steps.push(metrics);
        Ok((metrics, stop))
    }

    /// Writes the adapters of `networks` to the run's adapter file.
    fn write_adapter(&self, networks: &Networks, sampler: &Sampler<'_>) -> Result<(), TrainError> {
        let words = sampler.pipeline.token_embeddings(networks);
        let file = self.adapted.adapter_file(self.header.clone(), networks, words);
        Ok(file.write(&self.folder.file(RunFolder::ADAPTER))?)
    }

    /// Stores the finished steps when another rank has gone, and says how to go on.
    fn lost(&self, progress: &Progress<'_>, digest: &str, source: DistributedError) -> TrainError {
        let step = progress.trainer.steps_done();
        // Parameters that differ may be those of rank 0, and nothing is stored before the first step.
        if matches!(source, DistributedError::Differs { .. }) || step == 0 {
            return source.into();
        }
        match self.write_checkpoint(progress, digest) {
            Ok(()) => TrainError::RankLost { source, step, folder: self.folder.path().to_owned() },
            Err(error) => error,
        }
    }

    /// Sends the metrics of the newest step to the caller and to TensorBoard.
    fn report_step(
        &mut self,
        progress: &Progress<'_>,
        metrics: StepMetrics,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        let (done, total) = (progress.trainer.steps_done(), self.config.steps);
        if let Some(scale) =
            progress.trainer.loss_scale().filter(|_| !metrics.grad_norm.is_finite())
        {
            let text = format!(
                "step {done} overflowed f16 and was passed over; the loss scale is {} now",
                scale.value
            );
            on_event(Event::Note(&text));
        }
        if let Some(events) = &mut self.events {
            events.scalars(done, &metrics.named())?;
        }
        self.log.write(LogEntry::Step { step: done, values: Values(&metrics.named()) });
        on_event(Event::Progress { done, total, loss: Some(metrics.loss) });
        Ok(())
    }

    /// Measures the validation loss and the orthogonality.
    fn validate(&mut self, progress: &mut Progress<'_>) -> Result<(), TrainError> {
        let Some(validation) = &self.validation else { return Ok(()) };
        let _span = info_span!("validate").entered();
        let networks = progress.trainer.networks();
        let with_graph = progress.trainer.has_graphs();
        let loss = validation.loss(&networks, with_graph, self.ranks.division())?;
        self.ranks.reduce().broadcast(loss.to_le_bytes().to_vec(), size_of::<f32>())?;
        let metrics = ValidationMetrics {
            step: progress.trainer.steps_done(),
            loss,
            orthogonality: orthogonality_defect(&self.config.method, &named_params(&networks)),
        };
        if let Some(events) = &mut self.events {
            events.scalars(metrics.step, &metrics.named())?;
        }
        let values = Values(&metrics.named());
        self.log.write(LogEntry::Validation { step: metrics.step, values });
        progress.history.validation.push(metrics);
        Ok(())
    }

    /// Whether the samples after `step` steps are in the run's folder.
    fn has_snapshot(&self, step: usize) -> bool {
        self.folder.file(&snapshot_grid(step)).is_file()
    }

    /// Samples the prompts with the current adapter and writes the grid.
    fn snapshot(
        &mut self,
        progress: &mut Progress<'_>,
        sampler: &mut Sampler<'_>,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        let trainer = &progress.trainer;
        // The adapters are constant while sampling: merging them once saves their cost in every denoising
        // step.
        let networks = for_inference(trainer.networks(), &self.config.method);
        let sampled = sampler.sample_with(networks, SAMPLING, on_event)?;
        let grid = grid(&[sampled.images]);
        let snapshot = write_snapshot(self.folder, trainer.steps_done(), &grid, sampled.scores)?;
        if let Some(events) = &mut self.events {
            snapshot.write_events(events)?;
        }
        let step = trainer.steps_done();
        if is_score_due(self.config, step) {
            let scores = sampled
                .scores
                .map(|scores| scores.chosen(self.config.validation.metric_for_best_model));
            let score = scores.flatten().unwrap_or(f32::NAN);
            self.ranks.reduce().broadcast(score.to_le_bytes().to_vec(), size_of::<f32>())?;
            progress.history.add_score(StepScore { step, score });
        }
        self.log.write(LogEntry::Samples { step });
        on_event(Event::Stage { name: TRAINING });
        Ok(())
    }

    fn write_checkpoint(&self, progress: &Progress<'_>, digest: &str) -> Result<(), TrainError> {
        let _span = info_span!("write checkpoint").entered();
        let folder = self.folder.file(RunFolder::CHECKPOINTS);
        let best = progress.history.best_step(self.config.validation.metric_for_best_model);
        self.checkpoint(progress, digest).write(&folder, self.config.checkpoints.keep)?;
        Checkpoint::remove_bests_but(&folder, best)
    }

    fn checkpoint(&self, progress: &Progress<'_>, digest: &str) -> Checkpoint {
        Checkpoint {
            state: progress.trainer.state(),
            history: progress.history.clone(),
            seconds: progress.seconds,
            data: digest.to_owned(),
            fingerprint: self.fingerprint.clone(),
        }
    }
}

/// The largest `|QᵀQ - I|` over all factors on the Stiefel manifold: 0 without factors, NaN if a factor has
/// NaN or cannot be read.
pub(crate) fn orthogonality_defect<M: Method>(method: &M, params: &[NamedParam]) -> f32 {
    let factors = params.iter().filter(|param| method.geometry(&param.path) == Geometry::Stiefel);
    let error = |param: &NamedParam| {
        let &[.., n, m] = param.shape.as_slice() else { return f32::NAN };
        let count = param.shape.iter().product::<usize>() / (n * m).max(1);
        let q: Tensor<3> = param.value().reshape([count, n, m]);
        orthogonality_error(&q).map_or(f32::NAN, |error| error as f32)
    };
    // `f32::max` would lose NaN.
    let largest = |a: f32, b: f32| if a.is_nan() || a >= b { a } else { b };
    factors.map(error).fold(0.0, largest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use burn::tensor::Device;
    use soda_adapters::soda::SodaConfig;

    use super::*;

    /// One factor with NaN must not vanish behind factors that are orthogonal.
    #[test]
    fn the_orthogonality_defect_keeps_nan() {
        use burn::nn::LinearConfig;
        use soda_adapters::{Targets, map_params};

        let device = Device::default();
        let method = SodaConfig::default();
        let layer = LinearConfig::new(12, 12).init(&device);
        let plan = method.plan(&Targets(vec!["weight$".to_owned()]), &layer).unwrap();
        let layer = plan.attach(layer);
        let is_factor = |param: &NamedParam| method.geometry(&param.path) == Geometry::Stiefel;
        let factors = named_params(&layer).into_iter().filter(is_factor).count();
        assert!(factors > 1, "{factors} factors");
        assert!(orthogonality_defect(&method, &named_params(&layer)) <= 1e-5);
        for spoiled in 0..factors {
            let mut index = 0;
            let layer = map_params(layer.clone(), |param| {
                index += usize::from(is_factor(param));
                let spoil = is_factor(param) && index == spoiled + 1;
                spoil.then(|| param.value().mul_scalar(f32::NAN))
            });
            assert!(
                orthogonality_defect(&method, &named_params(&layer)).is_nan(),
                "factor {spoiled}"
            );
        }
    }
}
