//! Did it work? Subject and prompt fidelity of drawn pictures, by the field's three scores.
//!
//! | score | compares | paper |
//! |---|---|---|
//! | CLIP-T | picture and prompt (without the identifier, which the judge never met) | DreamBooth, arXiv 2208.12242 |
//! | CLIP-I | picture and pictures of the subject | the same |
//! | DINO | picture and pictures of the subject, by what makes an object *this* object | the same |
//! | drift | pictures of unrelated prompts and what the untuned model draws of the same noise | PEFT's method comparison |
//!
//! PEFT takes DINO for the drift; here it is given by CLIP and by DINO.

use image::RgbImage;
use serde::{Deserialize, Serialize};
use soda_models::metrics::Judges;

use crate::error::TrainError;

/// Mean scores of a set of pictures, cosines.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Agreement with the prompts.
    pub clip_t: f32,
    /// Likeness to the training pictures, by CLIP; mean over all pairs.
    pub clip_i: f32,
    /// Likeness to the training pictures, by identity; mean over all pairs.
    pub dino: f32,
    /// Likeness to the truth of the same prompt, by CLIP, where the data set has truths.
    pub truth_clip_i: Option<f32>,
    /// Likeness to the truth of the same prompt, by identity.
    pub truth_dino: Option<f32>,
    /// How far pictures of unrelated prompts have moved, where such are drawn: [`drift`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<f32>,
    /// The same by DINO, which is what PEFT's method comparison calls drift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift_dino: Option<f32>,
}

impl Scores {
    /// These, and how far pictures of unrelated prompts have moved from those that the untuned model draws; as they are
    /// where none were drawn.
    ///
    /// # Errors
    /// Lists of different lengths; what the judges say.
    pub fn with_drift(
        self,
        judges: &Judges,
        images: &[RgbImage],
        untuned: &[RgbImage],
    ) -> Result<Self, TrainError> {
        if images.is_empty() {
            return Ok(self);
        }
        let by_dino = mean(&judges.dino_pairs(images, untuned)?);
        let (drift, drift_dino) = (drift(judges, images, untuned)?, 1.0 - by_dino);
        Ok(Self { drift: Some(drift), drift_dino: Some(drift_dino), ..self })
    }

    /// Those that there are, by name.
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

/// What pictures are judged against.
pub struct ScoreReference {
    /// Prompts without the identifier, one a picture.
    pub prompts: Vec<String>,
    /// Pictures of the subject.
    pub subject: Vec<RgbImage>,
    /// The truth of each prompt, or empty.
    pub truth: Vec<RgbImage>,
}

/// Scores `images`, of which the i-th was drawn for the i-th prompt.
///
/// # Errors
/// None but the judges' own.
pub fn score(
    judges: &Judges,
    images: &[RgbImage],
    reference: &ScoreReference,
) -> Result<Scores, TrainError> {
    let has_truth = !reference.truth.is_empty();
    Ok(Scores {
        clip_t: mean(&judges.clip_t(images, &reference.prompts)?),
        clip_i: mean(&judges.clip_i(images, &reference.subject)?),
        dino: mean(&judges.dino(images, &reference.subject)?),
        truth_clip_i: has_truth
            .then(|| judges.clip_i_pairs(images, &reference.truth).map(|scores| mean(&scores)))
            .transpose()?,
        truth_dino: has_truth
            .then(|| judges.dino_pairs(images, &reference.truth).map(|scores| mean(&scores)))
            .transpose()?,
        drift: None,
        drift_dino: None,
    })
}

/// How far `images` have moved from those that the untuned model draws of the same prompts and noise: 1 less the
/// mean cosine of the pairs, by CLIP. 0 where nothing has changed.
///
/// # Errors
/// Lists of different lengths; what the judges say.
pub fn drift(
    judges: &Judges,
    images: &[RgbImage],
    untuned: &[RgbImage],
) -> Result<f32, TrainError> {
    Ok(1.0 - mean(&judges.clip_i_pairs(images, untuned)?))
}

fn mean(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len().max(1) as f32
}
