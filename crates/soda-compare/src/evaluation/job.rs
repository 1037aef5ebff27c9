//! One evaluation of a finished run, and its result.

use serde::{Deserialize, Serialize};
use soda_train::Scores;

use crate::results::{StoredResult, Task};
use crate::run::Run;

/// One evaluation of one adapter, or of two adapters merged.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The identifier. It is also a file name.
    pub id: String,
    /// The series: the arms and the path or the merge mode. Evaluations of one series and point are averaged.
    pub series: String,
    /// The point of the series: one strength, or the weights of two adapters.
    pub at: Vec<f64>,
    /// The run that trained the adapter and whose prompts are drawn.
    pub run: Run,
    /// The change to the adapter before it is evaluated.
    pub kind: EvaluationKind,
}

/// The change to an adapter before it is evaluated.
#[derive(Clone, Debug, PartialEq)]
pub enum EvaluationKind {
    /// The adapter gets another strength.
    Strength {
        /// The path from the base model to the adapter.
        path: StrengthPath,
        /// Prompts whose images should not change.
        unrelated: Vec<String>,
    },
    /// The adapter is merged with that of another run.
    Merge {
        /// The run that trained the style.
        style: Box<Run>,
        /// The way to merge.
        mode: MergeMode,
        /// The phrase that asks for the style.
        phrase: String,
    },
}

/// The path from the base model to an adapter, along which its strength is changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StrengthPath {
    /// Rotations follow the geodesic of their manifold.
    #[default]
    Geodesic,
    /// The weight change is scaled linearly.
    Linear,
}

/// A way to merge two adapters; see `soda_adapters::merge`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MergeMode {
    /// Adds the two weight changes.
    Residual,
    /// Takes the geodesic mean of the rotations.
    Geodesic,
    /// Applies one rotation after the other.
    Compose,
}

/// The scores of an evaluation: the file `scores.json` that `soda evaluate` writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationScores {
    /// The prompts that were drawn.
    pub prompts: Vec<String>,
    /// The identifier of the subject, which the judges' prompts omit.
    pub identifier: Option<String>,
    /// The names of the held-out images, if the images were compared with them.
    pub held_out: Vec<String>,
    /// The scores of the generated images.
    pub scores: Scores,
    /// The mean CLIP-I similarity to the images of the style.
    pub style_clip_i: Option<f32>,
}

/// A finished evaluation: one line of `probes.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationResult {
    /// The identifier of the evaluation: [`Evaluation::id`].
    pub id: String,
    /// The series: [`Evaluation::series`].
    pub series: String,
    /// The point of the series: [`Evaluation::at`].
    pub at: Vec<f64>,
    /// The scores of the generated images.
    pub scores: Scores,
    /// The mean CLIP-I similarity to the images of the style.
    pub style_clip_i: Option<f32>,
}

impl StrengthPath {
    /// The name in a plan.
    pub fn name(self) -> &'static str {
        match self {
            Self::Geodesic => "geodesic",
            Self::Linear => "linear",
        }
    }
}

impl MergeMode {
    /// The name in a plan.
    pub fn name(self) -> &'static str {
        match self {
            Self::Residual => "residual",
            Self::Geodesic => "geodesic",
            Self::Compose => "compose",
        }
    }
}

impl StoredResult for EvaluationResult {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Task for Evaluation {
    type Output = EvaluationScores;
    type Stored = EvaluationResult;

    fn id(&self) -> &str {
        &self.id
    }

    fn stored(&self, output: EvaluationScores) -> EvaluationResult {
        let Self { id, series, at, .. } = self.clone();
        let EvaluationScores { scores, style_clip_i, .. } = output;
        EvaluationResult { id, series, at, scores, style_clip_i }
    }
}
