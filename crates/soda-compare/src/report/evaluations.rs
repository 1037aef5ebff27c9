//! The section of the report on evaluations: other strengths, and merged adapters.

use std::path::PathBuf;

use maud::{Markup, PreEscaped, html};
use soda_train::plot::{Line, line_chart};

use super::image_grid::{grid_rows, samples_grid};
use crate::error::CompareError;
use crate::evaluation::{
    EVALUATION_SCORES, Evaluation, EvaluationKind, EvaluationResult, StrengthRow, strength_table,
};
use crate::results::ResultsFile;

/// Makes the section; empty without a finished evaluation. `folders` have one folder per evaluation.
pub(super) fn evaluation_section(
    evaluations: &[Evaluation],
    results: &ResultsFile<EvaluationResult>,
    folders: &[PathBuf],
) -> Result<Markup, CompareError> {
    let rows = strength_table(evaluations, results);
    if rows.is_empty() {
        return Ok(html! {});
    }
    let images = merged_images(evaluations, results, folders)?;
    Ok(html! {
        h2 { "Strength and merging" }
        table {
            tr {
                th { "adapters" } th { "strength or weights" } th { "evaluations" }
                @for (name, _) in EVALUATION_SCORES { th { (name) } }
            }
            @for row in &rows {
                tr {
                    td { (row.series) } td { (point(&row.at)) } td { (row.evaluations) }
                    @for score in &row.scores {
                        td {
                            @if let Some(score) = score {
                                (format!("{:.3} ± {:.3}", score.mean, score.std_dev))
                            }
                        }
                    }
                }
            }
        }
        @for (index, (name, _)) in EVALUATION_SCORES[..2].iter().enumerate() {
            (PreEscaped(line_chart("strength", name, &strength_curves(&rows, index))))
        }
        @for (name, source) in images {
            div { small { (name) } br; img src=(source) alt=(name); }
        }
    })
}

fn point(at: &[f64]) -> String {
    at.iter().map(f64::to_string).collect::<Vec<_>>().join(", ")
}

/// The curves of a score over the strength, one per series.
fn strength_curves(rows: &[StrengthRow], score: usize) -> Vec<Line> {
    let mut curves: Vec<Line> = Vec::new();
    for row in rows {
        let ([t], Some(summary)) = (&row.at[..], row.scores[score]) else { continue };
        if curves.last().is_none_or(|line| line.name != row.series) {
            curves.push(Line { name: row.series.clone(), points: Vec::new(), faint: false });
        }
        if let Some(line) = curves.last_mut() {
            line.points.push((*t, summary.mean));
        }
    }
    curves
}

/// The images of the first pair of merged adapters, one row per mode and weights: label and `img` source.
fn merged_images(
    evaluations: &[Evaluation],
    results: &ResultsFile<EvaluationResult>,
    folders: &[PathBuf],
) -> Result<Vec<(String, String)>, CompareError> {
    let pair = |evaluation: &Evaluation| match &evaluation.kind {
        EvaluationKind::Merge { style, .. } => Some((evaluation.run.id.clone(), style.id.clone())),
        EvaluationKind::Strength { .. } => None,
    };
    let finished = || evaluations.iter().filter(|one| results.get(&one.id).is_some());
    let Some(first) = finished().find_map(pair) else { return Ok(Vec::new()) };
    let shown = finished().filter(|one| pair(one).as_ref() == Some(&first));
    let image = |evaluation: &Evaluation| {
        let path = samples_grid(folders, &evaluation.id);
        let name = format!("{} at {}", evaluation.series, point(&evaluation.at));
        // The rows of the file are the subject's images and the generated images.
        Ok((name, grid_rows(&path, 2, 1..2)?))
    };
    shown.map(image).collect()
}
