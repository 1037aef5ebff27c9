//! Pictures of the validation prompts: before, while and after the network learns.

use image::RgbImage;
use serde::{Deserialize, Serialize};
use soda_models::image::grid;
use soda_models::metrics::Judges;
use soda_models::pipeline::{GenerateConfig, Pipeline};
use soda_models::unet::Unet;

use crate::config::TrainConfig;
use crate::dataset::Dataset;
use crate::error::TrainError;
use crate::evaluate::{Reference, Scores, score};
use crate::personalise::Event;
use crate::run::{RunFolder, SAMPLES};

/// Draws the prompts of `config.samples`, always from the same noise.
pub(crate) struct Sampler<'a> {
    pub(crate) pipeline: &'a mut Pipeline,
    pub(crate) config: &'a TrainConfig,
    pub(crate) folder: &'a RunFolder,
    pub(crate) judges: Option<&'a Judges>,
    pub(crate) reference: &'a Reference,
}

/// Pictures drawn while training, in the run's folder.
#[derive(Clone, Debug)]
pub(crate) struct Drawn {
    /// Steps done.
    pub(crate) step: usize,
    /// The grid, as PNG.
    pub(crate) png: Vec<u8>,
    /// Where there are judges.
    pub(crate) scores: Option<Scores>,
}

/// `samples/<step>.json`.
#[derive(Serialize, Deserialize)]
struct ScoreFile {
    scores: Scores,
}

impl Sampler<'_> {
    /// Draws with the pipeline's own network.
    pub(crate) fn draw(
        &self,
        stage: &str,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<RgbImage>, TrainError> {
        let samples = &self.config.samples;
        let generate = GenerateConfig {
            prompts: samples.prompts.clone(),
            steps: samples.steps,
            guidance: samples.guidance,
            seed: self.config.seed,
            shards: self.config.shards.unwrap_or(1),
            ..GenerateConfig::default()
        };
        on_event(Event::Stage { name: stage });
        let images = self.pipeline.generate(&generate, &mut |done, total| {
            on_event(Event::Progress { done, total, loss: None });
        })?;
        Ok(images)
    }

    /// Draws with another.
    pub(crate) fn draw_with(
        &mut self,
        unet: Unet,
        stage: &str,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<RgbImage>, TrainError> {
        let own = std::mem::replace(&mut self.pipeline.unet, unet);
        let images = self.draw(stage, on_event);
        self.pipeline.unet = own;
        images
    }

    /// What the judges say; `None` without judges.
    pub(crate) fn judge(&self, images: &[RgbImage]) -> Result<Option<Scores>, TrainError> {
        self.judges.map(|judges| score(judges, images, self.reference)).transpose()
    }

    /// Draws with `unet` and keeps the grid as `samples/<step>.png`, its scores beside it.
    pub(crate) fn record(
        &mut self,
        unet: Unet,
        step: usize,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        let images = self.draw_with(unet, "drawing", on_event)?;
        let samples = self.folder.file(SAMPLES);
        std::fs::create_dir_all(&samples).map_err(TrainError::io("create", &samples))?;
        if let Some(scores) = self.judge(&images)? {
            let text = serde_json::json!(ScoreFile { scores });
            let name = format!("{SAMPLES}/{step:08}.json");
            self.folder.write(&name, format!("{text:#}\n").as_bytes())?;
        }
        self.folder.write_png(&format!("{SAMPLES}/{step:08}.png"), &grid(&[images]))
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
        drawn.push(Drawn { step, png, scores });
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
