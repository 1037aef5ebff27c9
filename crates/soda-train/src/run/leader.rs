//! Rank 0 of a run, or the only one: it measures, draws and writes, and tells the others.

use std::sync::atomic::AtomicBool;
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
use crate::run::due::{has_lost_patience, is_checkpoint_due, is_score_due, measured};
use crate::run::fingerprint::RunFingerprint;
use crate::run::history::{History, StepScore, ValidationMetrics};
use crate::run::rank_start;
use crate::run::training_loop::{self, Ending, Progress, Role};
use crate::step::adapted_networks::AdaptedNetworks;
use crate::step::ranks::Ranks;
use crate::step::trainer::{StepData, Trainer};

/// Everything that rank 0 needs for the steps of a run.
pub(crate) struct Leader<'a, 's> {
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
    pub(crate) sampler: &'a mut Sampler<'s>,
    /// Ends the run after the current step.
    pub(crate) stop: &'a AtomicBool,
    pub(crate) on_event: &'a mut dyn FnMut(Event<'_>),
}

/// The result of all steps.
pub(crate) struct TrainedRun {
    /// The adapted networks on a plain device.
    pub(crate) networks: Networks,
    pub(crate) history: History,
    /// The duration of the steps in seconds.
    pub(crate) seconds: f64,
}

impl<'a> Leader<'a, '_> {
    /// Runs to the last step, from `checkpoint` if there is one.
    pub(crate) fn run(
        mut self,
        trainer: Trainer<'a>,
        checkpoint: Option<Checkpoint>,
    ) -> Result<TrainedRun, TrainError> {
        let stop = self.stop;
        let other_settings = || self.other_settings();
        let progress =
            Progress::restored(trainer, checkpoint, self.config, &self.data, other_settings)?;
        let Progress { trainer, history, seconds } = training_loop::run(&mut self, progress, stop)?;
        Ok(TrainedRun { networks: trainer.networks(), history, seconds })
    }

    /// The error of a checkpoint that does not fit the trainer.
    fn other_settings(&self) -> TrainError {
        CheckpointError::OtherSettings(self.folder.file(RunFolder::CHECKPOINTS)).into()
    }

    /// Whether this process draws samples alone, so that it may when it is asked. Otherwise all ranks draw
    /// them, at the steps that all know.
    fn draws_alone(&mut self) -> bool {
        let alone = self.ranks.world() == 1;
        if !alone {
            (self.on_event)(Event::Warning(
                "a run of several processes draws no samples on request: set `samples.every`",
            ));
        }
        alone
    }

    /// Writes the adapters of `networks` to the run's adapter file.
    fn write_adapter(&self, networks: &Networks) -> Result<(), TrainError> {
        let words = self.sampler.pipeline.token_embeddings(networks);
        let file = self.adapted.adapter_file(self.header.clone(), networks, words);
        Ok(file.write(&self.folder.file(RunFolder::ADAPTER))?)
    }

    /// Stores the finished steps when another rank has gone, and says how to go on.
    fn lost(&self, progress: &Progress<'_>, source: DistributedError) -> TrainError {
        let step = progress.trainer.steps_done();
        // Parameters that differ may be those of rank 0, and nothing is stored before the first step.
        if matches!(source, DistributedError::Differs { .. }) || step == 0 {
            return source.into();
        }
        match self.write_checkpoint(progress) {
            Ok(()) => TrainError::RankLost { source, step, folder: self.folder.path().to_owned() },
            Err(error) => error,
        }
    }

    /// Whether the samples after `step` steps are in the run's folder.
    fn has_snapshot(&self, step: usize) -> bool {
        self.folder.file(&snapshot_grid(step)).is_file()
    }

    fn write_checkpoint(&self, progress: &Progress<'_>) -> Result<(), TrainError> {
        let _span = info_span!("write checkpoint").entered();
        let folder = self.folder.file(RunFolder::CHECKPOINTS);
        let best = progress.history.best_step(self.config.validation.metric_for_best_model);
        self.checkpoint(progress).write(&folder, self.config.checkpoints.keep)?;
        Checkpoint::remove_bests_but(&folder, best)
    }

    fn checkpoint(&self, progress: &Progress<'_>) -> Checkpoint {
        Checkpoint {
            state: progress.trainer.state(),
            history: progress.history.clone(),
            seconds: progress.seconds,
            data: self.data.digest(),
            fingerprint: self.fingerprint.clone(),
        }
    }
}

impl<'a> Role<'a> for Leader<'a, '_> {
    fn config(&self) -> &TrainConfig {
        self.config
    }

    fn begin(&mut self, progress: &Progress<'a>) {
        self.log.write(LogEntry::Started { step: progress.done(), steps: self.config.steps });
    }

    /// If the step fails, writes the last adapter that gave a finite loss. If another rank has gone, stores
    /// the finished steps.
    fn step(&mut self, progress: &mut Progress<'a>) -> Result<bool, TrainError> {
        let _span = info_span!("step").entered();
        let started = Instant::now();
        let done = progress.trainer.step_unless(&self.data, self.stop);
        let done = done.and_then(|done| progress.trainer.agree().map(|()| done));
        let (metrics, stopping) = match done {
            Err(TrainError::Ranks(lost)) => return Err(self.lost(progress, lost)),
            Err(error) => {
                let path = self.folder.file(RunFolder::ADAPTER);
                let Some(error) = error.keeping(&path) else { return Err(error) };
                self.write_adapter(&progress.trainer.last_finite())?;
                return Err(error);
            }
            Ok(done) => done,
        };
        progress.seconds += started.elapsed().as_secs_f64();
        progress.history.steps.push(metrics);
        Ok(stopping)
    }

    /// Sends the metrics to the caller, to TensorBoard and to the log.
    fn report(&mut self, progress: &Progress<'a>) -> Result<(), TrainError> {
        let Some(metrics) = progress.history.steps.last() else { return Ok(()) };
        let (done, total) = (progress.done(), self.config.steps);
        if let Some(scale) =
            progress.trainer.loss_scale().filter(|_| !metrics.grad_norm.is_finite())
        {
            let text = format!(
                "step {done} overflowed f16 and was passed over; the loss scale is {} now",
                scale.value
            );
            (self.on_event)(Event::Note(&text));
        }
        if let Some(events) = &mut self.events {
            events.scalars(done, &metrics.named())?;
        }
        self.log.write(LogEntry::Step { step: done, values: Values(&metrics.named()) });
        (self.on_event)(Event::Progress { done, total, loss: Some(metrics.loss) });
        Ok(())
    }

    /// Measures the orthogonality as well.
    fn validate(&mut self, progress: &mut Progress<'a>) -> Result<(), TrainError> {
        let Some(validation) = &self.validation else { return Ok(()) };
        let _span = info_span!("validate").entered();
        let networks = progress.trainer.networks();
        let with_graph = progress.trainer.has_graphs();
        let loss = validation.loss(&networks, with_graph, self.ranks.division())?;
        self.ranks.reduce().broadcast(loss.to_le_bytes().to_vec(), size_of::<f32>())?;
        let metrics = ValidationMetrics {
            step: progress.done(),
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

    fn misses_samples(&mut self, progress: &Progress<'a>) -> Result<bool, TrainError> {
        let done = progress.done();
        let has_score = progress.history.scores.iter().any(|of| of.step == done);
        let has_score = has_score || !is_score_due(self.config, done);
        let missing = !(self.has_snapshot(done) && has_score);
        rank_start::give_flag(self.ranks, missing)?;
        Ok(missing)
    }

    fn is_asked_for_samples(&mut self, progress: &Progress<'a>) -> bool {
        let asked = self.folder.takes_request(RunFolder::SAMPLE);
        asked && self.draws_alone() && progress.done() < self.config.steps
    }

    /// Writes the grid of the samples as well.
    fn sample(&mut self, progress: &mut Progress<'a>) -> Result<(), TrainError> {
        let trainer = &progress.trainer;
        // The adapters are constant while sampling: merging them once saves their cost in every denoising
        // step.
        let networks = for_inference(trainer.networks(), &self.config.method);
        let sampled = self.sampler.sample_with(networks, SAMPLING, self.on_event)?;
        let grid = grid(&[sampled.images]);
        let step = trainer.steps_done();
        let snapshot = write_snapshot(self.folder, step, &grid, sampled.scores)?;
        if let Some(events) = &mut self.events {
            snapshot.write_events(events)?;
        }
        if is_score_due(self.config, step) {
            let scores = sampled
                .scores
                .map(|scores| scores.chosen(self.config.validation.metric_for_best_model));
            let score = scores.flatten().unwrap_or(f32::NAN);
            self.ranks.reduce().broadcast(score.to_le_bytes().to_vec(), size_of::<f32>())?;
            progress.history.add_score(StepScore { step, score });
        }
        self.log.write(LogEntry::Samples { step });
        (self.on_event)(Event::Stage { name: TRAINING });
        Ok(())
    }

    fn keep_if_best(&mut self, progress: &Progress<'a>) -> Result<(), TrainError> {
        let validation = &self.config.validation;
        let best = progress.history.best_step(validation.metric_for_best_model);
        if validation.load_best_model_at_end && best == Some(progress.done()) {
            let _span = info_span!("write checkpoint").entered();
            let folder = self.folder.file(RunFolder::CHECKPOINTS);
            self.checkpoint(progress).write_best(&folder)?;
        }
        Ok(())
    }

    fn settle(
        &mut self,
        progress: &Progress<'a>,
        sampled: Result<(), TrainError>,
        Ending { stopped, last }: Ending,
    ) -> Result<(), TrainError> {
        let sampled = match sampled {
            Err(TrainError::Ranks(lost)) => return Err(self.lost(progress, lost)),
            sampled => sampled,
        };
        let done = progress.done();
        let save = self.folder.takes_request(RunFolder::SAVE);
        let stopped_sampling = matches!(sampled, Err(TrainError::StoppedSampling { .. }));
        // The last step is stored as well, since drawing its samples may be stopped.
        let stores = stopped || stopped_sampling || last || save;
        if stores || is_checkpoint_due(self.config, done) {
            self.write_checkpoint(progress)?;
        }
        if save {
            self.write_adapter(&progress.trainer.networks())?;
            (self.on_event)(Event::Note(&format!("wrote the adapter of step {done}")));
        }
        sampled?;
        if stopped {
            let folder = self.folder.path().to_owned();
            return Err(TrainError::Stopped { step: done, folder });
        }
        Ok(())
    }

    fn end(&mut self, progress: &Progress<'a>) {
        let validation = &self.config.validation;
        if has_lost_patience(self.config, &progress.history) && progress.done() < self.config.steps
        {
            let text = format!(
                "stopped at step {}: {} had no new best value in {}",
                progress.done(),
                measured(validation.metric_for_best_model),
                counted(validation.early_stopping_patience, "measurement")
            );
            (self.on_event)(Event::Note(&text));
        }
    }

    fn restore_best(
        &mut self,
        trainer: Trainer<'a>,
        step: usize,
    ) -> Result<Trainer<'a>, TrainError> {
        let metric = measured(self.config.validation.metric_for_best_model);
        let text = format!("the adapter of step {step} is the best by {metric}");
        (self.on_event)(Event::Note(&text));
        let folder = self.folder.file(RunFolder::CHECKPOINTS);
        let best = Checkpoint::read_best(&folder, step)?;
        rank_start::give_checkpoint(self.ranks, Some(&best))?;
        trainer.restored(best.state).ok_or_else(|| self.other_settings())
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
