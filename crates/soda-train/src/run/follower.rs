//! A rank that computes its share of the steps and writes nothing.
//!
//! It does what [`TrainingLoop`](super::training_loop::TrainingLoop) does with the other ranks, in the same
//! order: sums, comparisons, and the validation loss of rank 0, by which a run may end early.

use std::sync::atomic::AtomicBool;

use soda_linalg::SvdCache;
use soda_models::pipeline::Pipeline;
use tracing::info_span;

use crate::config::TrainConfig;
use crate::data::cache::EncodeCache;
use crate::data::encoded_dataset::EncodedDataset;
use crate::data::prior;
use crate::error::{CheckpointError, TrainError};
use crate::event::{Event, TRAINING};
use crate::output::run_folder::RunFolder;
use crate::run::checkpoint::Checkpoint;
use crate::run::fingerprint::RunFingerprint;
use crate::run::history::{History, ValidationMetrics};
use crate::run::personalisation::{Personalisation, encode};
use crate::run::planning::Planning;
use crate::run::rank_start;
use crate::run::training_loop::{has_lost_patience, is_validation_due};
use crate::step::adapted_networks::trained_networks;
use crate::step::precision::frozen_denoiser;
use crate::step::ranks::Ranks;
use crate::step::trainer::{StepData, Trainer};

impl Personalisation {
    /// Does this rank's share of the run of rank 0, which calls [`Personalisation::run`]. Writes nothing but
    /// the cache.
    ///
    /// # Errors
    /// As [`Personalisation::run`], and [`TrainError::Ranks`] if another rank fails, hangs or differs.
    pub fn follow(
        self,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        let Self { config, mut dataset, mut pipeline, cache, with_graph, ranks, .. } = self;
        let on_event: &mut dyn FnMut(Event<'_>) = &mut |event| {
            ranks.reduce().alive();
            on_event(event);
        };
        // Rank 0 validates alone.
        dataset.hold_out(config.validation.held_out, config.seed)?;
        let fingerprint = RunFingerprint::new(&config, &pipeline, &dataset)?;
        rank_start::agree(&ranks, &config, &fingerprint, &dataset)?;
        let checkpoint = rank_start::take_checkpoint(&ranks)?;
        let svd_cache = cache.as_ref().map(SvdCache::new);
        on_event(Event::Stage { name: "encoding" });
        let cache = cache.map(|folder| EncodeCache::new(folder, &pipeline));
        let mut unvalidated = config.clone();
        unvalidated.validation.every = 0;
        let (data, _) = encode(&unvalidated, &pipeline, &dataset, &[], cache.as_ref(), on_event)?;
        rank_start::agree_on_data(&ranks, &data)?;
        let schedule = pipeline.forward_process();
        let planning = Planning {
            config: &config,
            pipeline: &pipeline,
            fingerprint: &fingerprint,
            svd_cache: svd_cache.as_ref(),
            cache: cache.as_ref(),
            with_graph,
        };
        let (_, plan) = planning.plan(&data, &schedule, on_event)?;
        pipeline.denoiser = frozen_denoiser(&config, pipeline.denoiser);
        pipeline = pipeline.in_drawing_format();
        let prior = class_images(&ranks, &config, &pipeline, cache.as_ref(), on_event)?;
        let networks = trained_networks(&config, &pipeline);
        let networks = plan.attach(networks).with_trainable_tokens();
        let trainer = Trainer::new(networks, &config.method, &config)?.with_ranks(ranks.clone());
        let trainer = if with_graph { trainer.with_graph() } else { trainer };
        on_event(Event::Stage { name: TRAINING });
        let data = StepData { data: &data, prior: prior.as_ref(), schedule: &schedule };
        Follower { config: &config, ranks: &ranks }.run(trainer, checkpoint, &data, stop, on_event)
    }
}

/// The class images that rank 0 has drawn, or those of the settings' folder.
fn class_images(
    ranks: &Ranks,
    config: &TrainConfig,
    pipeline: &Pipeline,
    cache: Option<&EncodeCache>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Option<EncodedDataset>, TrainError> {
    let Some(settings) = &config.prior else { return Ok(None) };
    let examples = match rank_start::take_class_images(ranks, config)? {
        None => prior::read(settings, &mut |_| ())?,
        Some(folder) => prior::drawn(settings, &folder.join(RunFolder::CLASS_IMAGES))?,
    };
    prior::encode_examples(pipeline, config, &examples, cache, on_event).map(Some)
}

/// The steps of a rank.
struct Follower<'a> {
    config: &'a TrainConfig,
    ranks: &'a Ranks,
}

impl<'a> Follower<'a> {
    fn run(
        &self,
        trainer: Trainer<'a>,
        checkpoint: Option<Checkpoint>,
        data: &StepData<'_>,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        let (mut trainer, mut history) = self.restore(trainer, checkpoint, data)?;
        let total = self.config.steps;
        trainer.agree()?;
        if history.steps.is_empty() {
            self.validate(&mut history, 0)?;
        }
        while trainer.steps_done() < total && !has_lost_patience(self.config, &history) {
            let span = info_span!("step").entered();
            let (metrics, stop) = trainer.step_unless(data, stop)?;
            trainer.agree()?;
            span.exit();
            history.steps.push(metrics);
            let done = trainer.steps_done();
            on_event(Event::Progress { done, total, loss: Some(metrics.loss) });
            if is_validation_due(self.config, done) {
                self.validate(&mut history, done)?;
            }
            let last = done == total || has_lost_patience(self.config, &history);
            if stop && !last {
                return Err(TrainError::RankStopped { rank: self.ranks.rank(), step: done });
            }
        }
        Ok(())
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
        let other = || CheckpointError::OtherSettings("sent by rank 0".into());
        Ok((trainer.restored(state).ok_or_else(other)?, history))
    }

    /// Takes the validation loss that rank 0 has measured, if the settings ask for it.
    fn validate(&self, history: &mut History, step: usize) -> Result<(), TrainError> {
        if self.config.validation.every == 0 {
            return Ok(());
        }
        let bytes = self.ranks.reduce().broadcast(Vec::new(), size_of::<f32>())?;
        let loss = bytes.try_into().map_or(f32::NAN, f32::from_le_bytes);
        history.validation.push(ValidationMetrics { step, loss, orthogonality: 0.0 });
        Ok(())
    }
}
