//! A rank that computes its share of the steps and writes nothing.
//!
//! [`training_loop::run`] calls it in the order of rank 0.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use soda_adapters::for_inference;
use soda_models::pipeline::{Networks, Pipeline};
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
use crate::run::due::is_score_due;
use crate::run::history::{StepScore, ValidationMetrics};
use crate::run::personalisation::Personalisation;
use crate::run::preparation::{self, Encodings};
use crate::run::rank_start;
use crate::run::training_loop::{self, Ending, Progress, Role};
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
        let follower = Follower {
            config: &config,
            ranks: &ranks,
            data: StepData { data: &data, prior: prior.as_ref(), schedule: &schedule },
            validation,
            sampler: &mut sampler,
            stop,
            on_event,
        };
        let networks = for_inference(follower.run(trainer, checkpoint)?, &config.method);
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

/// What a rank needs for its share of the steps.
struct Follower<'a, 's> {
    config: &'a TrainConfig,
    ranks: &'a Ranks,
    data: StepData<'a>,
    validation: Option<Validation>,
    sampler: &'a mut Sampler<'s>,
    stop: &'a AtomicBool,
    on_event: &'a mut dyn FnMut(Event<'_>),
}

impl<'a> Follower<'a, '_> {
    /// Runs to the last step. Returns the networks with the parameters that rank 0 ends with.
    fn run(
        mut self,
        trainer: Trainer<'a>,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Networks, TrainError> {
        let stop = self.stop;
        let progress =
            Progress::restored(trainer, checkpoint, self.config, &self.data, other_settings)?;
        Ok(training_loop::run(&mut self, progress, stop)?.trainer.networks())
    }

    /// A value that rank 0 has measured.
    fn measured_by_rank_0(&self) -> Result<f32, TrainError> {
        let bytes = self.ranks.reduce().broadcast(Vec::new(), size_of::<f32>())?;
        Ok(bytes.try_into().map_or(f32::NAN, f32::from_le_bytes))
    }
}

impl<'a> Role<'a> for Follower<'a, '_> {
    fn config(&self) -> &TrainConfig {
        self.config
    }

    fn step(&mut self, progress: &mut Progress<'a>) -> Result<bool, TrainError> {
        let _span = info_span!("step").entered();
        let (metrics, stopping) = progress.trainer.step_unless(&self.data, self.stop)?;
        progress.trainer.agree()?;
        progress.history.steps.push(metrics);
        Ok(stopping)
    }

    fn report(&mut self, progress: &Progress<'a>) -> Result<(), TrainError> {
        let loss = progress.history.steps.last().map(|metrics| metrics.loss);
        (self.on_event)(Event::Progress { done: progress.done(), total: self.config.steps, loss });
        Ok(())
    }

    /// Measures this rank's share, and takes the loss of all from rank 0.
    fn validate(&mut self, progress: &mut Progress<'a>) -> Result<(), TrainError> {
        let Some(validation) = &self.validation else { return Ok(()) };
        let (trainer, division) = (&progress.trainer, self.ranks.division());
        validation.loss(&trainer.networks(), trainer.has_graphs(), division)?;
        let (step, loss) = (progress.done(), self.measured_by_rank_0()?);
        progress.history.validation.push(ValidationMetrics { step, loss, orthogonality: 0.0 });
        Ok(())
    }

    fn misses_samples(&mut self, _progress: &Progress<'a>) -> Result<bool, TrainError> {
        rank_start::take_flag(self.ranks)
    }

    /// Draws this rank's share, and takes the score of all from rank 0.
    fn sample(&mut self, progress: &mut Progress<'a>) -> Result<(), TrainError> {
        let networks = for_inference(progress.trainer.networks(), &self.config.method);
        self.sampler.sample_with(networks, SAMPLING, self.on_event)?;
        let step = progress.done();
        if is_score_due(self.config, step) {
            let score = self.measured_by_rank_0()?;
            progress.history.add_score(StepScore { step, score });
        }
        (self.on_event)(Event::Stage { name: TRAINING });
        Ok(())
    }

    fn settle(
        &mut self,
        progress: &Progress<'a>,
        sampled: Result<(), TrainError>,
        ending: Ending,
    ) -> Result<(), TrainError> {
        sampled?;
        if ending.stopped {
            let (rank, step) = (self.ranks.rank(), progress.done());
            return Err(TrainError::RankStopped { rank, step });
        }
        Ok(())
    }

    fn restore_best(
        &mut self,
        trainer: Trainer<'a>,
        _step: usize,
    ) -> Result<Trainer<'a>, TrainError> {
        let best = rank_start::take_checkpoint(self.ranks)?;
        best.and_then(|best| trainer.restored(best.state)).ok_or_else(other_settings)
    }
}

fn other_settings() -> TrainError {
    CheckpointError::OtherSettings("sent by rank 0".into()).into()
}
