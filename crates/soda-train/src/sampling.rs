//! Pictures of the validation prompts: before, while and after the network learns.

use image::RgbImage;
use serde::{Deserialize, Serialize};
use soda_models::image::grid;
use soda_models::metrics::Judges;
use soda_models::pipeline::{GenerateConfig, Networks, Pipeline};

use crate::config::TrainConfig;
use crate::dataset::Dataset;
use crate::error::TrainError;
use crate::evaluate::{Reference, Scores, drift, score};
use crate::personalise::Event;
use crate::run::{RunFolder, SAMPLES, png};
use crate::tensorboard::Events;

/// Draws the prompts of `config.samples`, always from the same noise.
pub(crate) struct Sampler<'a> {
    /// What the untuned network draws of the unrelated prompts; empty until it has.
    pub(crate) untuned: Vec<RgbImage>,
    pub(crate) pipeline: &'a mut Pipeline,
    pub(crate) config: &'a TrainConfig,
    pub(crate) folder: &'a RunFolder,
    pub(crate) judges: Option<&'a Judges>,
    pub(crate) reference: &'a Reference,
}

/// One picture a prompt.
pub(crate) struct Drawing {
    /// Of `samples.prompts`.
    pub(crate) images: Vec<RgbImage>,
    /// Of `samples.unrelated`.
    pub(crate) unrelated: Vec<RgbImage>,
}

/// Pictures drawn while training, in the run's folder.
#[derive(Clone, Debug)]
pub(crate) struct Drawn {
    /// Steps done.
    pub(crate) step: usize,
    /// The grid, as PNG.
    pub(crate) png: Vec<u8>,
    /// Its width and height.
    pub(crate) size: (u32, u32),
    /// Where there are judges.
    pub(crate) scores: Option<Scores>,
}

impl Drawn {
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

impl Sampler<'_> {
    /// Draws with the pipeline's own networks.
    pub(crate) fn draw(
        &self,
        stage: &str,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Drawing, TrainError> {
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
        Ok(Drawing { images, unrelated })
    }

    /// Draws with another.
    pub(crate) fn draw_with(
        &mut self,
        networks: Networks,
        stage: &str,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Drawing, TrainError> {
        let own = self.pipeline.networks();
        self.pipeline.set_networks(networks);
        let drawing = self.draw(stage, on_event);
        self.pipeline.set_networks(own);
        drawing
    }

    /// What the judges say; `None` without judges.
    pub(crate) fn judge(&self, drawing: &Drawing) -> Result<Option<Scores>, TrainError> {
        let Some(judges) = self.judges else { return Ok(None) };
        let scores = score(judges, &drawing.images, self.reference)?;
        let drift = match drawing.unrelated.as_slice() {
            [] => None,
            unrelated => Some(drift(judges, unrelated, &self.untuned)?),
        };
        Ok(Some(Scores { drift, ..scores }))
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
    ) -> Result<Drawn, TrainError> {
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
        Ok(Drawn { step, size: sheet.dimensions(), png: bytes, scores })
    }
}

/// What [`Sampler::record`] left in a run's folder, in the order of the steps.
pub(crate) fn recorded(folder: &RunFolder) -> Result<Vec<Drawn>, TrainError> {
    let samples = folder.file(SAMPLES);
    if !samples.is_dir() {
        return Ok(Vec::new());
    }
    let mut drawn = Vec::new();
    for entry in std::fs::read_dir(&samples).map_err(TrainError::io("read", &samples))? {
        let path = entry.map_err(TrainError::io("read", &samples))?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_png = path.extension().is_some_and(|extension| extension == "png");
        let (true, Ok(step)) = (is_png, stem.parse()) else { continue };
        let png = std::fs::read(&path).map_err(TrainError::io("read", &path))?;
        let scores = std::fs::read(path.with_extension("json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<ScoreFile>(&bytes).ok())
            .map(|file| file.scores);
        let size = image::image_dimensions(&path).map_err(|error| TrainError::Picture {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        drawn.push(Drawn { step, png, size, scores });
    }
    drawn.sort_by_key(|drawn| drawn.step);
    Ok(drawn)
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
