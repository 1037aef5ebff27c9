//! A rank that computes its share of the steps and writes nothing.
//!
//! It does what [`TrainingLoop`](super::training_loop::TrainingLoop) does with the other ranks, in the same
//! order: sums, comparisons, validation losses, by which a run may end early, and samples.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use soda_adapters::for_inference;
use soda_models::pipeline::Pipeline;
use tracing::info_span;

use crate::config::TrainConfig;
use crate::data::cache::EncodeCache;
use crate::data::encoded_dataset::EncodedDataset;
use crate::data::prior;
use crate::error::{CheckpointError, TrainError};
use crate::eval::dataset_images::DatasetImages;
use crate::eval::sampling::Sampler;
use crate::eval::validation::Validation;
use crate::event::{Event, SAMPLING, SAMPLING_AFTER, SAMPLING_BEFORE, TRAINING};
use crate::output::run_folder::RunFolder;
use crate::run::checkpoint::Checkpoint;
use crate::run::due::{
    are_samples_due, has_lost_patience, is_score_due, is_validation_due, older_best,
};
use crate::run::history::{History, StepScore, ValidationMetrics};
use crate::run::personalisation::Personalisation;
use crate::run::preparation::{self, Encodings};
use crate::run::rank_start;
use crate::step::ranks::Ranks;
use crate::step::trainer::{StepData, Trainer};

impl Personalisation {
    /// Does this rank's share of the run of rank 0, which calls [`Personalisation::run`]. Writes nothing but
    /// the cache.
    ///
    /// # Errors
    /// As [`Personalisation::run`], and [`TrainError::Ranks`] if another rank fails, hangs or differs.
    pub fn follow(
        mut self,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        let (held_out, fingerprint) = self.begin(on_event)?;
        let Self { config, dataset, pipeline, judges, cache, with_graph, ranks } = self;
        let on_event: &mut dyn FnMut(Event<'_>) = &mut |event| {
            ranks.reduce().alive();
            on_event(event);
        };
        let checkpoint = rank_start::take_checkpoint(&ranks)?;
        let encodings =
            Encodings::new(&config, &pipeline, &dataset, &held_out, cache, &ranks, on_event)?;
        let schedule = pipeline.forward_process();
        let (mut pipeline, _, plan) =
            encodings.plan(&config, pipeline, &fingerprint, &ranks, with_graph, on_event)?;
        let Encodings { cache, data, validation, .. } = encodings;
        let prior = class_images(&ranks, &config, &pipeline, cache.as_ref(), stop, on_event)?;
        // Without judges nothing is compared with these.
        let images = match &judges {
            Some(_) => DatasetImages::read(&dataset, &held_out, pipeline.image_size() as u32)?,
            None => DatasetImages::default(),
        };
        let reference = images.reference(&dataset, &config.samples.prompts, judges.as_ref())?;
        let mut sampler = Sampler {
            base_unrelated: BTreeMap::new(),
            pipeline: &mut pipeline,
            config: &config,
            folder: None,
            judges: judges.as_ref(),
            reference: &reference,
            stop,
            division: ranks.division(),
        };
        sampler.sample_base(SAMPLING_BEFORE, on_event)?;
        let trainer = preparation::trainer(&config, sampler.pipeline, plan, &ranks, with_graph)?;
        on_event(Event::Stage { name: TRAINING });
        let data = StepData { data: &data, prior: prior.as_ref(), schedule: &schedule };
        let follower = Follower { config: &config, ranks: &ranks, validation, stop };
        let trainer = follower.run(trainer, checkpoint, &data, &mut sampler, on_event)?;
        let networks = for_inference(trainer.networks(), &config.method);
        sampler.sample_with(networks, SAMPLING_AFTER, on_event)?;
        Ok(())
    }
}

/// The class images that all ranks have drawn and rank 0 has written, or those of the settings' folder.
fn class_images(
    ranks: &Ranks,
    config: &TrainConfig,
    pipeline: &Pipeline,
    cache: Option<&EncodeCache>,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Option<EncodedDataset>, TrainError> {
    let Some(settings) = &config.prior else { return Ok(None) };
    let division = ranks.division();
    let read = prior::images(pipeline, config, None, division, stop, on_event)?;
    let examples = match rank_start::take_class_images(ranks, config)? {
        None => read.unwrap_or_default(),
        Some(folder) => prior::drawn(settings, &folder.join(RunFolder::CLASS_IMAGES))?,
    };
    prior::encode(pipeline, config, &examples, cache, division, on_event).map(Some)
}

/// The steps of a rank.
struct Follower<'a> {
    config: &'a TrainConfig,
    ranks: &'a Ranks,
    validation: Option<Validation>,
    stop: &'a AtomicBool,
}

impl<'a> Follower<'a> {
    /// Runs to the last step. Returns the trainer with the parameters that rank 0 ends with.
    fn run(
        &self,
        trainer: Trainer<'a>,
        checkpoint: Option<Checkpoint>,
        data: &StepData<'_>,
        sampler: &mut Sampler<'_>,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Trainer<'a>, TrainError> {
        let (mut trainer, mut history) = self.restore(trainer, checkpoint, data)?;
        let total = self.config.steps;
        trainer.agree()?;
        if history.steps.is_empty() {
            self.validate(&trainer, &mut history)?;
        }
        if are_samples_due(self.config, trainer.steps_done()) && rank_start::take_flag(self.ranks)?
        {
            self.sample(&trainer, &mut history, sampler, on_event)?;
        }
        while trainer.steps_done() < total && !has_lost_patience(self.config, &history) {
            let span = info_span!("step").entered();
            let (metrics, stopping) = trainer.step_unless(data, self.stop)?;
            trainer.agree()?;
            span.exit();
            if stopping {
                self.stop.store(true, Ordering::Relaxed);
            }
            history.steps.push(metrics);
            let done = trainer.steps_done();
            on_event(Event::Progress { done, total, loss: Some(metrics.loss) });
            if is_validation_due(self.config, done) {
                self.validate(&trainer, &mut history)?;
            }
            if are_samples_due(self.config, done) {
                self.sample(&trainer, &mut history, sampler, on_event)?;
            }
            let last = done == total || has_lost_patience(self.config, &history);
            if stopping && !last {
                return Err(TrainError::RankStopped { rank: self.ranks.rank(), step: done });
            }
        }
        if older_best(self.config, &history, trainer.steps_done()).is_none() {
            return Ok(trainer);
        }
        let best = rank_start::take_checkpoint(self.ranks)?;
        best.and_then(|best| trainer.restored(best.state)).ok_or_else(other_settings)
    }

    fn restore(
        &self,
        trainer: Trainer<'a>,
        checkpoint: Option<Checkpoint>,
        data: &StepData<'_>,
    ) -> Result<(Trainer<'a>, History), TrainError> {
        let Some(Checkpoint { state, history, data: digest, .. }) = checkpoint else {
            return Ok((trainer, History::default()));
        };
        if digest != data.digest() {
            return Err(CheckpointError::OtherData(self.config.data.clone()).into());
        }
        Ok((trainer.restored(state).ok_or_else(other_settings)?, history))
    }

    /// Measures this rank's share of the validation loss, and takes the loss of all from rank 0.
    fn validate(&self, trainer: &Trainer<'_>, history: &mut History) -> Result<(), TrainError> {
        let Some(validation) = &self.validation else { return Ok(()) };
        validation.loss(&trainer.networks(), trainer.has_graphs(), self.ranks.division())?;
        let loss = self.measured_by_rank_0()?;
        let step = trainer.steps_done();
        history.validation.push(ValidationMetrics { step, loss, orthogonality: 0.0 });
        Ok(())
    }

    /// A value that rank 0 has measured.
    fn measured_by_rank_0(&self) -> Result<f32, TrainError> {
        let bytes = self.ranks.reduce().broadcast(Vec::new(), size_of::<f32>())?;
        Ok(bytes.try_into().map_or(f32::NAN, f32::from_le_bytes))
    }

    /// Draws this rank's share of the samples, and takes the score of all from rank 0.
    fn sample(
        &self,
        trainer: &Trainer<'_>,
        history: &mut History,
        sampler: &mut Sampler<'_>,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        let networks = for_inference(trainer.networks(), &self.config.method);
        sampler.sample_with(networks, SAMPLING, on_event)?;
        let step = trainer.steps_done();
        if is_score_due(self.config, step) {
            history.add_score(StepScore { step, score: self.measured_by_rank_0()? });
        }
        on_event(Event::Stage { name: TRAINING });
        Ok(())
    }
}

fn other_settings() -> TrainError {
    CheckpointError::OtherSettings("sent by rank 0".into()).into()
}
