//! Samples of the evaluation prompts: before, during and after training.
//!
//! The prompts are dealt to as many parts as the run has ranks: prompt `i` is in part `i mod ranks`. A part
//! is drawn and scored by itself, on its rank, or one after the other where there are fewer processes.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use burn::tensor::{Device, TensorData};
use image::RgbImage;
use soda_models::metrics::Judges;
use soda_models::pipeline::{GenerateConfig, Networks, Pipeline};
use tracing::info_span;

use crate::config::TrainConfig;
use crate::data::dataset::Dataset;
use crate::divided::{Division, Recipients, Sent, Work};
use crate::error::TrainError;
use crate::eval::scores::{
    SampleScores, ScoreReference, Scores, sample_scores, score, similarities,
};
use crate::event::Event;
use crate::output::run_folder::RunFolder;
use crate::output::tensor_file::{Tensors, from_images, to_images};

/// Samples the prompts of `config.samples`, always from the same initial noise, and scores them.
pub(crate) struct Sampler<'a> {
    /// The base model's samples of the unrelated prompts that are drawn here, by the number of the prompt.
    /// Empty until they are sampled.
    pub(crate) base_unrelated: BTreeMap<usize, RgbImage>,
    pub(crate) pipeline: &'a mut Pipeline,
    pub(crate) config: &'a TrainConfig,
    /// The run's folder, on the rank that writes.
    pub(crate) folder: Option<&'a RunFolder>,
    /// The evaluation models. Without them samples are not scored.
    pub(crate) judges: Option<&'a Judges>,
    pub(crate) reference: &'a ScoreReference,
    /// Ends the sampling before the next denoising step.
    pub(crate) stop: &'a AtomicBool,
    /// The ranks that divide the prompts.
    pub(crate) division: Division<'a>,
}

/// One sample of each prompt. On a rank that writes nothing: of the prompts of its own parts.
pub(crate) struct SampledImages {
    /// The samples of `samples.prompts`.
    pub(crate) images: Vec<RgbImage>,
    /// The samples of `samples.unrelated`.
    pub(crate) unrelated: Vec<RgbImage>,
    /// The scores of all samples. `None` without judges.
    pub(crate) scores: Option<Scores>,
}

/// The samples of one part of the prompts, and the scores of each. There are no scores without judges.
struct SampledPart {
    images: Vec<RgbImage>,
    scores: Vec<SampleScores>,
}

impl Sent for SampledPart {
    fn to_tensors(&self) -> Tensors {
        let mut tensors = Tensors::from([("images".to_owned(), from_images(&self.images))]);
        if !self.scores.is_empty() {
            let values: Vec<f32> = self.scores.iter().flatten().copied().collect();
            tensors.insert("scores".to_owned(), TensorData::new(values, [self.scores.len(), 5]));
        }
        tensors
    }

    fn from_tensors(tensors: &Tensors, _: &Device) -> Option<Self> {
        let images = to_images(tensors.get("images")?)?;
        let scores = match tensors.get("scores") {
            None => Vec::new(),
            Some(data) if data.shape().as_slice() == [images.len(), 5] => {
                data.as_slice::<f32>().ok()?.as_chunks().0.to_vec()
            }
            Some(_) => return None,
        };
        Some(Self { images, scores })
    }
}

impl Sampler<'_> {
    /// Samples with the pipeline's own networks, those of the base model, and keeps the samples of the
    /// unrelated prompts for the drift of later ones. `stage` names the work in events.
    ///
    /// # Errors
    /// Returns [`TrainError::StoppedSampling`] after `stop` was set, or an error of the pipeline.
    pub(crate) fn sample_base(
        &mut self,
        stage: &str,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<SampledImages, TrainError> {
        let parts = self.sample(stage, on_event)?;
        let first_unrelated = self.config.samples.prompts.len();
        for (indices, part) in self.here(&parts) {
            let unrelated = indices.into_iter().zip(&part.images);
            let unrelated = unrelated.filter(|(index, _)| *index >= first_unrelated);
            self.base_unrelated.extend(unrelated.map(|(index, image)| (index, image.clone())));
        }
        Ok(self.joined(parts))
    }

    /// Samples with `networks`, which have no adapters, instead of the pipeline's own.
    ///
    /// # Errors
    /// As [`Sampler::sample_base`].
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
        sampled.map(|parts| self.joined(parts))
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

    /// The prompts of each part, by their numbers. No part is empty.
    fn parts(&self) -> Vec<Vec<usize>> {
        let samples = &self.config.samples;
        let count = samples.prompts.len() + samples.unrelated.len();
        let parts = self.config.ranks.unwrap_or(1).clamp(1, count.max(1));
        (0..parts).map(|part| (part..count).step_by(parts).collect()).collect()
    }

    /// The parts that are here, with the numbers of their prompts: all on rank 0.
    fn here<'p>(&self, parts: &'p [SampledPart]) -> Vec<(Vec<usize>, &'p SampledPart)> {
        let indices = self.parts();
        let all = (0..indices.len()).collect();
        let here = if self.division.is_first() { all } else { self.division.own(indices.len()) };
        here.into_iter().zip(parts).map(|(number, part)| (indices[number].clone(), part)).collect()
    }

    /// Draws and scores this rank's parts.
    fn sample(
        &self,
        stage: &str,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<SampledPart>, TrainError> {
        let samples = &self.config.samples;
        let request = GenerateConfig {
            prompts: samples.prompts.iter().chain(&samples.unrelated).cloned().collect(),
            steps: samples.steps,
            guidance_scale: samples.guidance,
            seed: self.config.seed,
            tiling: samples.tiling(&self.pipeline.vae_config),
            shards: self.config.shards.unwrap_or(1),
            ..GenerateConfig::default()
        };
        on_event(Event::Stage { name: stage });
        let parts = self.parts();
        let side = self.pipeline.image_size() as u32;
        let fits = |part: usize, found: &SampledPart, _: &[SampledPart]| {
            let scored = if self.judges.is_some() { parts[part].len() } else { 0 };
            found.images.len() == parts[part].len()
                && found.scores.len() == scored
                && found.images.iter().all(|image| image.dimensions() == (side, side))
        };
        let work = Work {
            what: "samples",
            count: parts.len(),
            recipients: Recipients::Rank0,
            device: &self.pipeline.device,
            fits: &fits,
        };
        self.division.run(&work, |own| {
            let mut drawn = Vec::with_capacity(own.len());
            for (index, part) in own.iter().map(|part| &parts[*part]).enumerate() {
                let mut on_step = |done, total| {
                    let (done, total) = (index * total + done, own.len() * total);
                    on_event(Event::Progress { done, total, loss: None });
                };
                let span = info_span!("sample").entered();
                let images = self.pipeline.generate_some(&request, part, self.stop, &mut on_step);
                let images = images.map_err(TrainError::sampling(self.folder.map(RunFolder::path)));
                span.exit();
                drawn.push(self.scored(part, images?)?);
            }
            Ok(drawn)
        })
    }

    /// Scores the samples of the prompts with these numbers, if there are judges.
    fn scored(&self, part: &[usize], images: Vec<RgbImage>) -> Result<SampledPart, TrainError> {
        let Some(judges) = self.judges else {
            return Ok(SampledPart { images, scores: Vec::new() });
        };
        let _span = info_span!("score").entered();
        let first_unrelated = self.config.samples.prompts.len();
        let (prompts, unrelated) =
            part.split_at(part.partition_point(|index| *index < first_unrelated));
        let (samples, others) = images.split_at(prompts.len());
        let mut scores = match prompts {
            [] => Vec::new(),
            _ => sample_scores(judges, samples, &self.reference.select(prompts))?,
        };
        let base: Vec<RgbImage> =
            unrelated.iter().filter_map(|index| self.base_unrelated.get(index)).cloned().collect();
        // These are those of the base model, if it has none yet.
        let base = if self.base_unrelated.is_empty() { others } else { base.as_slice() };
        scores.extend(similarities(judges, others, base)?);
        Ok(SampledPart { images, scores })
    }

    /// The samples of all parts in the order of the prompts.
    fn joined(&self, parts: Vec<SampledPart>) -> SampledImages {
        let mut by_prompt: BTreeMap<usize, (RgbImage, Option<SampleScores>)> = BTreeMap::new();
        for (indices, part) in self.here(&parts) {
            let scores = part.scores.iter().copied().map(Some).chain(std::iter::repeat(None));
            let drawn = part.images.iter().cloned().zip(scores);
            by_prompt.extend(indices.into_iter().zip(drawn));
        }
        let unrelated = by_prompt.split_off(&self.config.samples.prompts.len());
        let split = |drawn: BTreeMap<usize, (RgbImage, Option<SampleScores>)>| {
            drawn.into_values().unzip::<_, _, Vec<_>, Vec<_>>()
        };
        let ((images, scores), (unrelated, drift)) = (split(by_prompt), split(unrelated));
        let scored = |scores: Vec<Option<SampleScores>>| scores.into_iter().flatten().collect();
        let (scores, drift): (Vec<_>, Vec<_>) = (scored(scores), scored(drift));
        let has_truth = !self.reference.truth.is_empty();
        let scores = self.judges.map(|_| Scores::from_samples(&scores, &drift, has_truth));
        SampledImages { images, unrelated, scores }
    }
}

/// The most captions that are sampled where nothing names prompts. A data set may have thousands.
const MOST_CAPTIONS: usize = 8;

/// The prompts to sample: those of the settings, or else the data set's evaluation prompts, or else some of
/// its captions.
pub(crate) fn evaluation_prompts(config: &TrainConfig, dataset: &Dataset) -> Vec<String> {
    if !config.samples.prompts.is_empty() {
        return config.samples.prompts.clone();
    }
    if !dataset.eval_prompts.is_empty() {
        return dataset.eval_prompts.clone();
    }
    sampled_captions(dataset)
}

/// At most [`MOST_CAPTIONS`] of the data set's captions, evenly spaced.
fn sampled_captions(dataset: &Dataset) -> Vec<String> {
    let all = dataset.examples.len();
    let count = all.min(MOST_CAPTIONS);
    (0..count).map(|index| dataset.examples[index * all / count].caption.clone()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;
    use crate::testing::folder;

    #[test]
    fn some_captions_are_sampled_where_nothing_names_prompts() {
        let captions = |count: usize| {
            let names: Vec<(String, String)> =
                (0..count).map(|index| (format!("{index:02}"), index.to_string())).collect();
            let files: Vec<(String, &str)> = names
                .iter()
                .flat_map(|(name, text)| {
                    [(format!("{name}.png"), ""), (format!("{name}.txt"), text)]
                })
                .collect();
            let files: Vec<(&str, &str)> =
                files.iter().map(|(name, text)| (&**name, *text)).collect();
            let folder = folder(&files);
            sampled_captions(&Dataset::read(folder.path(), None).unwrap())
        };
        assert_eq!(captions(3), ["0", "1", "2"]);
        assert_eq!(captions(8).len(), 8);
        assert_eq!(captions(20), ["0", "2", "5", "7", "10", "12", "15", "17"]);
    }
}
