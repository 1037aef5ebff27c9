//! Samples of the evaluation prompts: before, during and after training.

use std::sync::atomic::AtomicBool;

use image::RgbImage;
use soda_models::image::grid;
use soda_models::metrics::Judges;
use soda_models::pipeline::{GenerateConfig, Networks, Pipeline};
use tracing::info_span;

use crate::config::TrainConfig;
use crate::data::dataset::Dataset;
use crate::error::TrainError;
use crate::eval::scores::{ScoreReference, Scores, score};
use crate::eval::snapshots::{Snapshot, write_snapshot};
use crate::event::{Event, SAMPLING};
use crate::output::run_folder::RunFolder;

/// Samples the prompts of `config.samples`, always from the same initial noise, and scores them.
pub(crate) struct Sampler<'a> {
    /// The base model's samples of the unrelated prompts. Empty until they are sampled.
    pub(crate) base_unrelated: Vec<RgbImage>,
    pub(crate) pipeline: &'a mut Pipeline,
    pub(crate) config: &'a TrainConfig,
    pub(crate) folder: &'a RunFolder,
    /// The evaluation models. Without them samples are not scored.
    pub(crate) judges: Option<&'a Judges>,
    pub(crate) reference: &'a ScoreReference,
    /// Ends the sampling before the next denoising step.
    pub(crate) stop: &'a AtomicBool,
}

/// One sample of each prompt.
pub(crate) struct SampledImages {
    /// The samples of `samples.prompts`.
    pub(crate) images: Vec<RgbImage>,
    /// The samples of `samples.unrelated`.
    pub(crate) unrelated: Vec<RgbImage>,
}

impl Sampler<'_> {
    /// Samples with the pipeline's own networks. `stage` names the work in events.
    ///
    /// # Errors
    /// Returns [`TrainError::StoppedSampling`] after `stop` was set, or an error of the pipeline.
    pub(crate) fn sample(
        &self,
        stage: &str,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<SampledImages, TrainError> {
        let samples = &self.config.samples;
        let generate = GenerateConfig {
            prompts: samples.prompts.iter().chain(&samples.unrelated).cloned().collect(),
            steps: samples.steps,
            guidance_scale: samples.guidance,
            seed: self.config.seed,
            shards: self.config.shards.unwrap_or(1),
            ..GenerateConfig::default()
        };
        on_event(Event::Stage { name: stage });
        let _span = info_span!("sample").entered();
        let mut on_step = |done, total| on_event(Event::Progress { done, total, loss: None });
        let images = self.pipeline.generate_unless(&generate, self.stop, &mut on_step);
        let mut images = images.map_err(TrainError::sampling(self.folder.path()))?;
        let unrelated = images.split_off(samples.prompts.len());
        Ok(SampledImages { images, unrelated })
    }

    /// Samples with `networks`, which have no adapters, instead of the pipeline's own.
    pub(crate) fn sample_with(
        &mut self,
        networks: Networks,
        stage: &str,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<SampledImages, TrainError> {
        let own = self.pipeline.networks();
        self.pipeline.set_networks(networks.in_drawing_format());
        let sampled = self.sample(stage, on_event);
        self.pipeline.set_networks(own);
        sampled
    }

    /// Scores samples. `None` without judges.
    pub(crate) fn score(&self, sampled: &SampledImages) -> Result<Option<Scores>, TrainError> {
        let Some(judges) = self.judges else { return Ok(None) };
        let scores = score(judges, &sampled.images, self.reference)?;
        scores.with_drift(judges, &sampled.unrelated, &self.base_unrelated).map(Some)
    }

    /// Scores the ground truth itself. `None` without judges or without ground truth.
    pub(crate) fn score_truth(&self) -> Result<Option<Scores>, TrainError> {
        let Some((judges, truth)) = self.judges.zip(Some(&self.reference.truth)) else {
            return Ok(None);
        };
        if truth.is_empty() {
            return Ok(None);
        }
        score(judges, truth, self.reference).map(Some)
    }

    /// Samples with `networks` after `step` steps and writes the image grid and its scores to the run's
    /// folder.
    pub(crate) fn snapshot(
        &mut self,
        networks: Networks,
        step: usize,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Snapshot, TrainError> {
        let sampled = self.sample_with(networks, SAMPLING, on_event)?;
        let scores = self.score(&sampled)?;
        write_snapshot(self.folder, step, &grid(&[sampled.images]), scores)
    }
}

/// The prompts to sample: those of the settings, or else the data set's evaluation prompts, or else its
/// captions.
pub(crate) fn evaluation_prompts(config: &TrainConfig, dataset: &Dataset) -> Vec<String> {
    if !config.samples.prompts.is_empty() {
        return config.samples.prompts.clone();
    }
    if !dataset.eval_prompts.is_empty() {
        return dataset.eval_prompts.clone();
    }
    dataset.examples.iter().map(|example| example.caption.clone()).collect()
}
