//! Pictures of the validation prompts: before, while and after the network learns.

use std::path::{Path, PathBuf};

use image::RgbImage;
use serde::{Deserialize, Serialize};
use soda_models::image::grid;
use soda_models::metrics::Judges;
use soda_models::pipeline::{GenerateConfig, Networks, Pipeline};

use crate::config::TrainConfig;
use crate::data::dataset::Dataset;
use crate::error::TrainError;
use crate::eval::scores::{ScoreReference, Scores, score};
use crate::event::Event;
use crate::output::run_folder::{RunFolder, SAMPLES, png};
use crate::output::tensorboard::Events;

/// Draws the prompts of `config.samples`, always from the same noise.
pub(crate) struct Sampler<'a> {
    /// What the untuned network draws of the unrelated prompts; empty until it has.
    pub(crate) untuned: Vec<RgbImage>,
    pub(crate) pipeline: &'a mut Pipeline,
    pub(crate) config: &'a TrainConfig,
    pub(crate) folder: &'a RunFolder,
    pub(crate) judges: Option<&'a Judges>,
    pub(crate) reference: &'a ScoreReference,
}

/// One picture a prompt.
pub(crate) struct SampledImages {
    /// Of `samples.prompts`.
    pub(crate) images: Vec<RgbImage>,
    /// Of `samples.unrelated`.
    pub(crate) unrelated: Vec<RgbImage>,
}

/// Pictures drawn while training, in the run's folder.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// Steps done.
    pub(crate) step: usize,
    /// The grid, as PNG.
    pub(crate) png: Vec<u8>,
    /// Its width and height.
    pub(crate) size: (u32, u32),
    /// Where there are judges.
    pub(crate) scores: Option<Scores>,
}

impl Snapshot {
    /// Sends everything to TensorBoard.
    pub(crate) fn show(&self, events: &mut Events) -> Result<(), TrainError> {
        if let Some(scores) = &self.scores {
            events.scalars(self.step, &scores.named())?;
        }
        events.picture(self.step, "samples", self.size, &self.png)
    }
}

/// `samples/<step>.json`.
#[derive(Serialize, Deserialize)]
struct ScoreFile {
    scores: Scores,
}

/// Scores of the pictures drawn after some steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepScores {
    /// Steps done.
    pub step: usize,
    /// What the judges said then.
    pub scores: Scores,
}

impl Sampler<'_> {
    /// Draws with the pipeline's own networks.
    pub(crate) fn draw(
        &self,
        stage: &str,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<SampledImages, TrainError> {
        let samples = &self.config.samples;
        let generate = GenerateConfig {
            prompts: samples.prompts.iter().chain(&samples.unrelated).cloned().collect(),
            steps: samples.steps,
            guidance: samples.guidance,
            seed: self.config.seed,
            shards: self.config.shards.unwrap_or(1),
            ..GenerateConfig::default()
        };
        on_event(Event::Stage { name: stage });
        let mut images = self.pipeline.generate(&generate, &mut |done, total| {
            on_event(Event::Progress { done, total, loss: None });
        })?;
        let unrelated = images.split_off(samples.prompts.len());
        Ok(SampledImages { images, unrelated })
    }

    /// Draws with another.
    pub(crate) fn draw_with(
        &mut self,
        networks: Networks,
        stage: &str,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<SampledImages, TrainError> {
        let own = self.pipeline.networks();
        self.pipeline.set_networks(networks);
        let drawing = self.draw(stage, on_event);
        self.pipeline.set_networks(own);
        drawing
    }

    /// What the judges say; `None` without judges.
    pub(crate) fn judge(&self, drawing: &SampledImages) -> Result<Option<Scores>, TrainError> {
        let Some(judges) = self.judges else { return Ok(None) };
        let scores = score(judges, &drawing.images, self.reference)?;
        scores.with_drift(judges, &drawing.unrelated, &self.untuned).map(Some)
    }

    /// What they say of the truth itself, where it is known.
    pub(crate) fn judge_truth(&self) -> Result<Option<Scores>, TrainError> {
        let Some((judges, truth)) = self.judges.zip(Some(&self.reference.truth)) else {
            return Ok(None);
        };
        if truth.is_empty() {
            return Ok(None);
        }
        score(judges, truth, self.reference).map(Some)
    }

    /// Draws with `networks` and keeps the grid as `samples/<step>.png`, its scores beside it.
    pub(crate) fn record(
        &mut self,
        networks: Networks,
        step: usize,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Snapshot, TrainError> {
        let drawing = self.draw_with(networks, "drawing", on_event)?;
        let samples = self.folder.file(SAMPLES);
        std::fs::create_dir_all(&samples).map_err(TrainError::io("create", &samples))?;
        let scores = self.judge(&drawing)?;
        if let Some(scores) = scores {
            let text = serde_json::json!(ScoreFile { scores });
            let name = format!("{SAMPLES}/{step:08}.json");
            self.folder.write(&name, format!("{text:#}\n").as_bytes())?;
        }
        let name = format!("{SAMPLES}/{step:08}.png");
        let sheet = grid(&[drawing.images]);
        let bytes = png(&sheet).map_err(|error| TrainError::Picture {
            path: self.folder.file(&name),
            reason: error.to_string(),
        })?;
        self.folder.write(&name, &bytes)?;
        Ok(Snapshot { step, size: sheet.dimensions(), png: bytes, scores })
    }
}

/// What [`Sampler::record`] left in a run's folder, in the order of the steps.
pub(crate) fn read_snapshots(folder: &RunFolder) -> Result<Vec<Snapshot>, TrainError> {
    let read = |(step, path): (usize, PathBuf)| {
        let size = image::image_dimensions(&path).map_err(|error| TrainError::Picture {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        let png = std::fs::read(&path).map_err(TrainError::io("read", &path))?;
        Ok(Snapshot { step, png, size, scores: scores_beside(&path)? })
    };
    grids(folder.path())?.into_iter().map(read).collect()
}

/// How a run scored on the way, where it was drawn and judged there: its `samples/<step>.json`, in the order of the
/// steps. `folder` is the run's.
///
/// # Errors
/// A file that cannot be read, or does not parse.
pub fn read_step_scores(folder: &Path) -> Result<Vec<StepScores>, TrainError> {
    let mut found = Vec::new();
    for (step, path) in grids(folder)? {
        found.extend(scores_beside(&path)?.map(|scores| StepScores { step, scores }));
    }
    Ok(found)
}

/// The grids of a run's folder, each with its step, in the order of the steps.
fn grids(folder: &Path) -> Result<Vec<(usize, PathBuf)>, TrainError> {
    let samples = folder.join(SAMPLES);
    if !samples.is_dir() {
        return Ok(Vec::new());
    }
    let mut grids = Vec::new();
    for entry in std::fs::read_dir(&samples).map_err(TrainError::io("read", &samples))? {
        let path = entry.map_err(TrainError::io("read", &samples))?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_png = path.extension().is_some_and(|extension| extension == "png");
        let (true, Ok(step)) = (is_png, stem.parse()) else { continue };
        grids.push((step, path));
    }
    grids.sort();
    Ok(grids)
}

/// What the judges said of a grid, if they were asked.
fn scores_beside(grid: &Path) -> Result<Option<Scores>, TrainError> {
    let path = grid.with_extension("json");
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).map_err(TrainError::io("read", &path))?;
    let file: ScoreFile = serde_json::from_str(&text).map_err(|error| TrainError::Metadata {
        path,
        line: error.line(),
        reason: error.to_string(),
    })?;
    Ok(Some(file.scores))
}

/// What is drawn: the prompts of the settings, or the data's, or else its captions.
pub(crate) fn prompts(config: &TrainConfig, dataset: &Dataset) -> Vec<String> {
    if !config.samples.prompts.is_empty() {
        return config.samples.prompts.clone();
    }
    if !dataset.eval_prompts.is_empty() {
        return dataset.eval_prompts.clone();
    }
    dataset.examples.iter().map(|example| example.caption.clone()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn scores_on_the_way_come_in_the_order_of_the_steps() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_step_scores(folder.path()).unwrap().is_empty(), "nothing was drawn");
        let samples = folder.path().join(SAMPLES);
        std::fs::create_dir(&samples).unwrap();
        let scores = |clip_t| Scores {
            clip_t,
            clip_i: 0.5,
            dino: 0.25,
            truth_clip_i: None,
            truth_dino: None,
            drift: None,
            drift_dino: None,
        };
        // As a run names them, and as it would after 99,999,999 steps.
        for (name, clip_t) in [("100000000", 0.75), ("00000050", 0.5), ("00000100", 0.625)] {
            std::fs::write(samples.join(format!("{name}.png")), "").unwrap();
            let text = serde_json::json!(ScoreFile { scores: scores(clip_t) }).to_string();
            std::fs::write(samples.join(format!("{name}.json")), text).unwrap();
        }
        // Sampled without judges.
        std::fs::write(samples.join("00000075.png"), "").unwrap();
        let expected = [(50, 0.5), (100, 0.625), (100_000_000, 0.75)];
        let expected = expected.map(|(step, clip_t)| StepScores { step, scores: scores(clip_t) });
        assert_eq!(read_step_scores(folder.path()).unwrap(), expected);

        std::fs::write(samples.join("00000050.json"), "{").unwrap();
        let message = read_step_scores(folder.path()).unwrap_err().to_string();
        assert!(message.contains("00000050.json, line 1"), "{message}");
    }
}
