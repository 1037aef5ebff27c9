//! The metrics of a finished run, as one line of `results.jsonl`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use soda_train::{Scores, StepScores};

use super::file::StoredResult;
use super::task::Task;
use crate::run::Run;

/// The metrics of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunMetrics {
    /// Scores of the base model.
    pub before: Scores,
    /// Scores of the fine-tuned model.
    pub after: Scores,
    /// Scores of the true images of the prompts, where the data set has them.
    pub truth: Option<Scores>,
    /// Scores at intermediate steps, if the plan sets `samples.every`. Excludes `before` and `after`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<StepScores>,
    /// The training losses, [`downsampled`].
    pub losses: Vec<f32>,
    /// The number of trainable parameters.
    pub num_params: u64,
    /// The size of the adapter file, in bytes.
    pub file_size: u64,
    /// Seconds per optimizer step.
    pub seconds_per_step: f64,
    /// The peak resident memory of the run's process in bytes, where the system reports it.
    pub peak_memory: Option<u64>,
    /// The most memory in bytes that a GPU's pools held, see [`RunSummary`](soda_train::RunSummary). Results
    /// of a CPU lack it, and those of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_memory: Option<u64>,
    /// The start of the run in ISO 8601, in UTC without a zone. Results of earlier versions lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,
    /// Seconds of the run with encoding, drawing and scoring. Results of earlier versions lack them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_seconds: Option<f64>,
}

/// The most losses that are kept of a run.
const MAX_LOSSES: usize = 100;

/// Averages equal stretches of `losses`, so that at most 100 values remain.
///
/// ```
/// let losses = soda_compare::downsampled(&vec![1.0; 250]);
/// assert_eq!(losses.len(), 84);
/// ```
pub fn downsampled(losses: &[f32]) -> Vec<f32> {
    let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
    losses.chunks(stretch_len(losses.len())).map(mean).collect()
}

/// The number of steps that one value of [`downsampled`] averages.
fn stretch_len(steps: usize) -> usize {
    steps.div_ceil(MAX_LOSSES).max(1)
}

impl RunMetrics {
    /// The mean loss of the stretches that end after step `from` and up to step `to`, for a run of `steps`
    /// steps.
    pub(crate) fn mean_loss(&self, steps: usize, from: usize, to: usize) -> Option<f32> {
        let end = |index: usize| ((index + 1) * stretch_len(steps)).min(steps);
        let losses = self.losses.iter().enumerate();
        let inside = losses.filter(|(index, _)| (from + 1..=to).contains(&end(*index)));
        let (sum, count) = inside.fold((0.0, 0), |(sum, count), (_, loss)| (sum + loss, count + 1));
        (count > 0).then(|| sum / count as f32)
    }
}

/// A finished run: one line of `results.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// The identifier of the run: [`Run::id`].
    pub id: String,
    /// The name of the arm.
    pub arm: String,
    /// The folder of the data set.
    pub data: PathBuf,
    /// The seed.
    pub seed: u64,
    /// The metrics of the run.
    #[serde(flatten)]
    pub metrics: RunMetrics,
}

impl Task for Run {
    type Output = RunMetrics;
    type Stored = RunResult;

    fn id(&self) -> &str {
        &self.id
    }

    fn stored(&self, metrics: RunMetrics) -> RunResult {
        RunResult {
            id: self.id.clone(),
            arm: self.arm.clone(),
            data: self.config.data.clone(),
            seed: self.config.seed,
            metrics,
        }
    }
}

impl RunResult {
    /// The criterion that chooses between candidate settings.
    ///
    /// With true images it is the mean of DINO and CLIP-I similarity to them. Without, it is the mean of DINO
    /// similarity to the subject and CLIP-T. Returns `None` if the value is not finite.
    pub fn selection_score(&self) -> Option<f64> {
        let after = &self.metrics.after;
        let (one, other) = match (after.truth_dino, after.truth_clip_i) {
            (Some(dino), Some(clip_i)) => (dino, clip_i),
            _ => (after.dino, after.clip_t),
        };
        let score = f64::from(one + other) / 2.0;
        score.is_finite().then_some(score)
    }
}

impl StoredResult for RunResult {
    fn id(&self) -> &str {
        &self.id
    }
}
