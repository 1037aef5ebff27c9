//! The page of the report: scores, figures, costs and image grids.

use std::path::{Path, PathBuf};

use maud::{Markup, PreEscaped, html};
use soda_train::page::page;

use super::curves::score_curves;
use super::evaluations::evaluation_section;
use super::image_grid::data_set_grids;
use super::loss::loss_curves;
use super::scatter::similarity_scatter;
use crate::error::CompareError;
use crate::evaluation::{Evaluation, EvaluationResult};
use crate::plan::ComparisonPlan;
use crate::results::{ResultsFile, RunResult};
use crate::run::Run;
use crate::score_table::{
    AdjustedTest, ArmRow, CLIP_T, DRIFT, SCORES, score_table, similarity_scores,
};

/// The data of a report.
#[derive(Clone, Copy, Debug)]
pub struct ReportInput<'a> {
    /// The plan.
    pub plan: &'a ComparisonPlan,
    /// The scored runs; unfinished ones are left out.
    pub runs: &'a [Run],
    /// The results of the runs.
    pub results: &'a ResultsFile<RunResult>,
    /// The evaluations; unfinished ones are left out.
    pub evaluations: &'a [Evaluation],
    /// The results of the evaluations.
    pub evaluation_results: &'a ResultsFile<EvaluationResult>,
    /// Folders with one folder per run and per evaluation. The first that has one counts.
    pub folders: &'a [PathBuf],
}

/// Writes the report as one HTML page.
///
/// # Errors
/// A `samples.png` is missing or cannot be decoded.
pub fn report(input: &ReportInput<'_>) -> Result<String, CompareError> {
    let &ReportInput { plan, runs, results, folders, .. } = input;
    let rows = score_table(runs, results);
    let arms: Vec<(&str, Vec<(&Run, &RunResult)>)> =
        rows.iter().map(|row| (row.arm.as_str(), finished(runs, results, &row.arm))).collect();
    let [dino, clip_i] = similarity_scores(&rows);
    let mut sets: Vec<&Path> = Vec::new();
    for run in runs {
        if !sets.contains(&run.config.data.as_path()) {
            sets.push(&run.config.data);
        }
    }
    let grids = sets
        .iter()
        .map(|data| data_set_grids(data, plan.score().seeds[0], runs, results, folders))
        .collect::<Result<Vec<_>, _>>()?;
    let curves = score_curves(&arms, &[dino, CLIP_T, DRIFT]);
    let body = html! {
        (introduction(sets.len(), plan.score().seeds.len(), arms.first().map_or("", |arm| arm.0)))
        (score_rows(&rows))
        p { small { "Scores \"to subject\" compare with " (subject_images(runs)) "." } }
        (score_limits(&runs.iter().filter_map(|run| results.get(&run.id)).collect::<Vec<_>>(), dino))
        h2 { "Subject fidelity over prompt fidelity" }
        p { small { "Up and to the right is better. Bars are one standard error over the data sets." } }
        @for score in [dino, clip_i] { (similarity_scatter(&rows, score)) }
        @if !curves.is_empty() {
            h2 { "Over the steps" }
            p { small { "The mean of an arm's runs, from the base model to the last step." } }
            @for curve in &curves { (PreEscaped(curve)) }
        }
        (evaluation_section(input.evaluations, input.evaluation_results, folders)?)
        h2 { "Cost" }
        (costs(&rows))
        h2 { "Loss" }
        (PreEscaped(loss_curves(&arms)))
        h2 { "Images" }
        p {
            small {
                "All arms have the same prompts and the same starting noise. At most ten images of a row are shown. \
                 The first two rows are the training images and the images of the base model."
            }
        }
        @for grid in &grids { (grid) }
    };
    Ok(page("Comparison", &body))
}

fn finished<'a>(
    runs: &'a [Run],
    results: &'a ResultsFile<RunResult>,
    arm: &str,
) -> Vec<(&'a Run, &'a RunResult)> {
    let runs = runs.iter().filter(|run| run.arm == arm);
    runs.filter_map(|run| Some((run, results.get(&run.id)?))).collect()
}

fn introduction(data_sets: usize, seeds: usize, first: &str) -> Markup {
    html! {
        p {
            (data_sets) " data sets × " (seeds) " seeds. Each cell is the mean ± standard deviation of the runs. \
             Below it stand the mean difference to " b { (first) } " on the same data set and seed, \
             and the number of units. A unit is a data set, as the mean of its seeds, or a seed if there is one data set. \
             p is the two-sided p value of the paired permutation test over the units. \
             Holm is the same p value adjusted for the number of arms."
        }
    }
}

fn score_rows(rows: &[ArmRow]) -> Markup {
    html! {
        table {
            tr { th { "arm" } th { "runs" } @for (name, _) in SCORES { th { (name) } } }
            @for row in rows {
                tr {
                    td { (row.arm) } td { (row.runs) }
                    @for (score, against) in row.scores.iter().zip(&row.against_first) {
                        td {
                            @if let Some(score) = score {
                                (format!("{:.3} ± {:.3}", score.mean, score.std_dev))
                            }
                            @if let Some(AdjustedTest { test, adjusted_p }) = against {
                                br; small {
                                    (format!("{:+.3}, {test}", test.difference)) br;
                                    (format!("p {:.3}, Holm {adjusted_p:.3}", test.p))
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The images that CLIP-I and DINO "to subject" compare with.
fn subject_images(runs: &[Run]) -> &'static str {
    let held_out = runs.iter().filter(|run| run.config.validation.held_out > 0.0).count();
    match held_out {
        0 => "the training images, so that a copy of one scores highest",
        count if count == runs.len() => "the held-out images",
        _ => {
            "the held-out images in the arms that have some, and with the training images in the others"
        }
    }
}

/// The scores of the base model and of the true images: the two ends of the scale.
fn score_limits(results: &[&RunResult], dino: usize) -> Markup {
    let mean = |scores: &dyn Fn(&RunResult) -> Option<f32>| {
        let values: Vec<f32> = results.iter().filter_map(|result| scores(result)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f32>() / values.len() as f32)
    };
    html! {
        p {
            @for (name, score) in [SCORES[CLIP_T], SCORES[dino]] {
                (name) ": base model "
                (number(mean(&|result| score(&result.metrics.before))))
                ", truth "
                (number(mean(&|result| score(result.metrics.truth.as_ref()?))))
                ". "
            }
        }
    }
}

fn number(value: Option<f32>) -> String {
    value.map_or("not known".to_owned(), |value| format!("{value:.3}"))
}

fn costs(rows: &[ArmRow]) -> Markup {
    html! {
        table {
            tr {
                th { "arm" } th { "trainable parameters" } th { "file, kB" } th { "s per step" }
                th { "peak memory, MB" }
            }
            @for row in rows {
                tr {
                    td { (row.arm) } td { (row.num_params) }
                    td { (format!("{:.1}", row.file_size as f64 / 1e3)) }
                    td { (format!("{:.3}", row.seconds_per_step)) }
                    td { (row.peak_memory.map_or("-".to_owned(), |bytes| (bytes / 1_000_000).to_string())) }
                }
            }
        }
    }
}
