//! Scores of samples: fidelity to the subject and to the prompt, and drift.
//!
//! | score | compares |
//! |---|---|
//! | CLIP-T | a sample and its prompt, without the identifier, which the evaluation model does not know |
//! | CLIP-I | a sample and the images of the subject |
//! | DINO | a sample and the images of the subject, by features that tell one object from similar ones |
//! | drift | samples of unrelated prompts and the base model's samples of the same noise |
//!
//! The first three are those of DreamBooth (arXiv 2208.12242), the drift is that of PEFT's method comparison.
//! PEFT measures drift by DINO. Here it is measured by CLIP and by DINO.

use std::path::Path;

use image::RgbImage;
use serde::{Deserialize, Serialize};
use soda_models::input_file::{SizeLimit, read_text};
use soda_models::metrics::{Judges, ReferenceFeatures};

use crate::config::BestMetric;
use crate::error::{DataError, TrainError};
use crate::output::run_folder::RunFolder;

/// The mean scores of some samples. All are cosines of embeddings, or 1 less a cosine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Similarity to the prompts, by CLIP.
    pub clip_t: f32,
    /// Similarity to the images of the subject, by CLIP. The mean is over all pairs.
    pub clip_i: f32,
    /// Similarity to the images of the subject, by DINO. The mean is over all pairs.
    pub dino: f32,
    /// Similarity to the ground truth of the same prompt, by CLIP. `None` if the data set has no ground
    /// truth.
    pub truth_clip_i: Option<f32>,
    /// Similarity to the ground truth of the same prompt, by DINO. `None` if the data set has no ground
    /// truth.
    pub truth_dino: Option<f32>,
    /// The drift by CLIP, see [`drift`]. `None` if there are no unrelated prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<f32>,
    /// The drift by DINO, as in PEFT's method comparison. `None` if there are no unrelated prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift_dino: Option<f32>,
}

impl Scores {
    /// Adds the drift of `images`, samples of unrelated prompts, from `base`, the base model's samples of the
    /// same prompts and noise. Without images the drift stays `None`.
    ///
    /// # Errors
    /// Returns an error if the lists differ in length or a judge fails.
    pub fn with_drift(
        self,
        judges: &Judges,
        images: &[RgbImage],
        base: &[RgbImage],
    ) -> Result<Self, TrainError> {
        Ok(self.with_drift_of(&similarities(judges, images, base)?))
    }

    /// The mean scores of samples, and the drift of samples of unrelated prompts if there are any.
    pub(crate) fn from_samples(
        samples: &[SampleScores],
        unrelated: &[SampleScores],
        has_truth: bool,
    ) -> Self {
        let mean_of = |index: usize| mean(&samples.iter().map(|of| of[index]).collect::<Vec<_>>());
        let scores = Self {
            clip_t: mean_of(0),
            clip_i: mean_of(1),
            dino: mean_of(2),
            truth_clip_i: has_truth.then(|| mean_of(3)),
            truth_dino: has_truth.then(|| mean_of(4)),
            drift: None,
            drift_dino: None,
        };
        scores.with_drift_of(unrelated)
    }

    fn with_drift_of(self, unrelated: &[SampleScores]) -> Self {
        if unrelated.is_empty() {
            return self;
        }
        let drift =
            |index: usize| 1.0 - mean(&unrelated.iter().map(|of| of[index]).collect::<Vec<_>>());
        Self { drift: Some(drift(0)), drift_dino: Some(drift(1)), ..self }
    }

    /// The score that the settings choose an adapter by. `None` if they go by the loss.
    pub(crate) fn chosen(&self, metric: BestMetric) -> Option<f32> {
        match metric {
            BestMetric::Loss => None,
            BestMetric::Dino => Some(self.dino),
            BestMetric::ClipI => Some(self.clip_i),
            BestMetric::ClipT => Some(self.clip_t),
        }
    }

    /// The scores that are not `None`, by name.
    pub(crate) fn named(&self) -> Vec<(&'static str, f32)> {
        let all = [
            ("clip_t", Some(self.clip_t)),
            ("clip_i", Some(self.clip_i)),
            ("dino", Some(self.dino)),
            ("truth_clip_i", self.truth_clip_i),
            ("truth_dino", self.truth_dino),
            ("drift", self.drift),
            ("drift_dino", self.drift_dino),
        ];
        all.into_iter().filter_map(|(name, score)| Some((name, score?))).collect()
    }
}

/// All scores of a run: the content of its `scores.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunScores {
    /// Scores of the base model.
    pub before: Scores,
    /// Scores of the fine-tuned model.
    pub after: Scores,
    /// Scores of the ground truth, about what a perfect fine-tune reaches. `None` if the data set has no
    /// ground truth.
    pub truth: Option<Scores>,
    /// The file names of the images that were held out and compared with. If empty, the training images were.
    #[serde(default)]
    pub held_out: Vec<String>,
}

impl RunScores {
    /// Reads the scores of the run in `folder`.
    ///
    /// # Errors
    /// Returns an error if the run has no scores, because it had no judges, or if the file does not parse.
    pub fn read(folder: &Path) -> Result<Self, TrainError> {
        let path = folder.join(RunFolder::SCORES);
        let text = read_text(&path, SizeLimit::LIST).map_err(TrainError::io("read", &path))?;
        serde_json::from_str(&text).map_err(|error| {
            let (line, reason) = (error.line(), error.to_string());
            DataError::Metadata { path, line, reason }.into()
        })
    }

    /// Writes the scores to the folder of the run.
    pub(crate) fn write(&self, folder: &RunFolder) -> Result<(), TrainError> {
        let text = serde_json::json!(self);
        folder.write(RunFolder::SCORES, format!("{text:#}\n").as_bytes())
    }
}

/// What samples are compared with.
pub struct ScoreReference {
    /// The prompt of each sample, without the identifier.
    pub prompts: Vec<String>,
    /// The features of the images of the subject.
    pub subject: ReferenceFeatures,
    /// The ground truth of each prompt, or empty.
    pub truth: Vec<RgbImage>,
}

impl ScoreReference {
    /// What samples of some of the prompts are compared with.
    pub(crate) fn select(&self, prompts: &[usize]) -> Self {
        let truth = |index: &usize| self.truth.get(*index).cloned();
        Self {
            prompts: prompts.iter().map(|index| self.prompts[*index].clone()).collect(),
            subject: self.subject.clone(),
            truth: prompts.iter().filter_map(truth).collect(),
        }
    }
}

/// Scores `images`, of which the i-th is a sample of the i-th prompt.
///
/// # Errors
/// Returns an error if a judge fails.
pub fn score(
    judges: &Judges,
    images: &[RgbImage],
    reference: &ScoreReference,
) -> Result<Scores, TrainError> {
    let scores = sample_scores(judges, images, reference)?;
    Ok(Scores::from_samples(&scores, &[], !reference.truth.is_empty()))
}

/// The scores of one sample: CLIP-T, CLIP-I, DINO, and CLIP-I and DINO with the ground truth or 0 without it.
/// Of a sample of an unrelated prompt: its similarity to the base model's, by CLIP and by DINO, and zeros.
pub(crate) type SampleScores = [f32; 5];

/// The scores of each of `images`, of which the i-th is a sample of the i-th prompt.
pub(crate) fn sample_scores(
    judges: &Judges,
    images: &[RgbImage],
    reference: &ScoreReference,
) -> Result<Vec<SampleScores>, TrainError> {
    let ScoreReference { prompts, subject, truth } = reference;
    let none = || vec![0.0; images.len()];
    let columns = [
        judges.clip_t(images, prompts)?,
        judges.clip_i(images, subject)?,
        judges.dino(images, subject)?,
        if truth.is_empty() { none() } else { judges.clip_i_pairs(images, truth)? },
        if truth.is_empty() { none() } else { judges.dino_pairs(images, truth)? },
    ];
    let row = |index: usize| columns.each_ref().map(|column| column[index]);
    Ok((0..images.len()).map(row).collect())
}

/// The similarity of each of `images` to the base model's sample of the same prompt and noise.
pub(crate) fn similarities(
    judges: &Judges,
    images: &[RgbImage],
    base: &[RgbImage],
) -> Result<Vec<SampleScores>, TrainError> {
    if images.is_empty() {
        return Ok(Vec::new());
    }
    let by_dino = judges.dino_pairs(images, base)?;
    let by_clip = judges.clip_i_pairs(images, base)?;
    Ok(by_clip.into_iter().zip(by_dino).map(|(clip, dino)| [clip, dino, 0.0, 0.0, 0.0]).collect())
}

/// The drift of `images` from `base`, the base model's samples of the same prompts and noise: 1 less the mean
/// cosine of the pairs, by CLIP. 0 means no change.
///
/// # Errors
/// Returns an error if the lists differ in length or a judge fails.
pub fn drift(judges: &Judges, images: &[RgbImage], base: &[RgbImage]) -> Result<f32, TrainError> {
    Ok(1.0 - mean(&judges.clip_i_pairs(images, base)?))
}

fn mean(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len().max(1) as f32
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn run_scores_survive_the_file() {
        let scores = |clip_t| Scores {
            clip_t,
            clip_i: 0.5,
            dino: 0.25,
            truth_clip_i: Some(0.125),
            truth_dino: None,
            drift: Some(0.0),
            drift_dino: None,
        };
        let (before, after) = (scores(0.5), scores(0.75));
        let held_out = vec!["00.png".to_owned()];
        let written = RunScores { before, after, truth: None, held_out };
        let root = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(root.path(), Some("run"), "run", "").unwrap();
        written.write(&folder).unwrap();
        assert_eq!(RunScores::read(folder.path()).unwrap(), written);
        std::fs::write(folder.file(RunFolder::SCORES), "{").unwrap();
        let message = RunScores::read(folder.path()).unwrap_err().to_string();
        assert!(message.contains("scores.json, line 1"), "{message}");
    }
}
