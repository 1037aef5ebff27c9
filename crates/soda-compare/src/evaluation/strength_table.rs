//! The evaluations as a table: one row per series and point.

use super::job::{Evaluation, EvaluationResult};
use crate::results::ResultsFile;
use crate::statistics::Summary;

/// The evaluations of one series at one point.
#[derive(Clone, Debug)]
pub struct StrengthRow {
    /// The series: [`Evaluation::series`].
    pub series: String,
    /// The point of the series: [`Evaluation::at`].
    pub at: Vec<f64>,
    /// The number of finished evaluations.
    pub evaluations: usize,
    /// Summaries of six scores: CLIP-T, DINO to truth, DINO to subject, CLIP-I to subject, CLIP-I to style,
    /// drift.
    pub scores: Vec<Option<Summary>>,
}

/// A score's name, and the function that reads it.
type EvaluationScore = (&'static str, fn(&EvaluationResult) -> Option<f32>);

/// The scores of [`StrengthRow::scores`], in its order. The report draws the first two.
pub(crate) const EVALUATION_SCORES: [EvaluationScore; 6] = [
    ("CLIP-T", |result| Some(result.scores.clip_t)),
    ("DINO to truth", |result| result.scores.truth_dino),
    ("DINO to subject", |result| Some(result.scores.dino)),
    ("CLIP-I to subject", |result| Some(result.scores.clip_i)),
    ("CLIP-I to style", |result| result.style_clip_i),
    ("drift", |result| result.scores.drift),
];

/// Summarises the finished `evaluations`: one row per series and point, in the order of `evaluations`.
pub fn strength_table(
    evaluations: &[Evaluation],
    results: &ResultsFile<EvaluationResult>,
) -> Vec<StrengthRow> {
    let mut rows: Vec<StrengthRow> = Vec::new();
    for evaluation in evaluations {
        if !rows.iter().any(|row| row.series == evaluation.series && row.at == evaluation.at) {
            let same = |other: &&Evaluation| {
                other.series == evaluation.series && other.at == evaluation.at
            };
            let found: Vec<&EvaluationResult> =
                evaluations.iter().filter(same).filter_map(|same| results.get(&same.id)).collect();
            let summary = |(_, score): &EvaluationScore| {
                let values = found.iter().filter_map(|result| score(result)).map(f64::from);
                Summary::from_values(&values.collect::<Vec<_>>())
            };
            rows.push(StrengthRow {
                series: evaluation.series.clone(),
                at: evaluation.at.clone(),
                evaluations: found.len(),
                scores: EVALUATION_SCORES.iter().map(summary).collect(),
            });
        }
    }
    rows.retain(|row| row.evaluations > 0);
    rows
}
