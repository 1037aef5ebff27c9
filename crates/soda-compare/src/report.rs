//! The results as one HTML file that needs no network.

use std::path::Path;

use maud::{Markup, PreEscaped, html};
use soda_train::page::page;

use crate::curves::curves;
use crate::error::CompareError;
use crate::looks;
use crate::plan::{Plan, Run};
use crate::plot;
use crate::probe::{Probe, Seen};
use crate::results::{Record, Results};
use crate::sheets::side_by_side;
use crate::table::{Against, CLIP_T, DRIFT, Row, SCORES, likeness, table};

/// The report on the finished of `runs`, and on the `probes` into them that were `seen`. Their folders are in `folder`.
///
/// # Errors
/// A `samples.png` that is missing or broken.
pub fn report(
    plan: &Plan,
    runs: &[Run],
    results: &Results<Record>,
    (probes, seen): (&[Probe], &Results<Seen>),
    folder: &Path,
) -> Result<String, CompareError> {
    let rows = table(runs, results);
    let arms: Vec<(&str, Vec<(&Run, &Record)>)> =
        rows.iter().map(|row| (row.arm.as_str(), finished(runs, results, &row.arm))).collect();
    let [dino, clip_i] = likeness(&rows);
    let mut sets: Vec<&Path> = Vec::new();
    for run in runs {
        if !sets.contains(&run.config.data.as_path()) {
            sets.push(&run.config.data);
        }
    }
    let grids = sets
        .iter()
        .map(|data| side_by_side(data, plan.score().seeds[0], runs, results, folder))
        .collect::<Result<Vec<_>, _>>()?;
    let curves = curves(&arms, &[dino, CLIP_T, DRIFT]);
    let body = html! {
        p {
            (sets.len()) " data sets × " (plan.score().seeds.len())
            " seeds. Mean ± standard deviation of the runs. Below it the mean difference to "
            b { (arms.first().map_or("", |arm| arm.0)) }
            " on the same data and seed, and over how many data sets, each the mean of its seeds (or over how many \
             seeds, where there is one data set); the two-sided p of the paired permutation test over these, and the \
             same corrected for the number of arms (Holm)."
        }
        (scores(&rows))
        p { small { "To the subject: to " (subject(runs)) "." } }
        (known(&runs.iter().filter_map(|run| results.get(&run.id)).collect::<Vec<_>>(), dino))
        h2 { "Subject over prompt" }
        p { small { "Up and to the right is better; bars are one standard error over the data sets." } }
        @for likeness in [dino, clip_i] { (PreEscaped(plot::pareto(&rows, likeness))) }
        @if !curves.is_empty() {
            h2 { "Over the steps" }
            p { small { "The mean of an arm's runs, from the untuned model to the end." } }
            @for curve in &curves { (PreEscaped(curve)) }
        }
        (looks::section(probes, seen, folder)?)
        h2 { "Cost" }
        (costs(&rows))
        h2 { "Loss" }
        (PreEscaped(plot::losses(&arms)))
        h2 { "Pictures" }
        p { small { "Same prompts, same noise, at most ten of them. First the training pictures, then the model before." } }
        @for grid in &grids { (grid) }
    };
    Ok(page("Comparison", &body))
}

fn finished<'a>(
    runs: &'a [Run],
    results: &'a Results<Record>,
    arm: &str,
) -> Vec<(&'a Run, &'a Record)> {
    let runs = runs.iter().filter(|run| run.arm == arm);
    runs.filter_map(|run| Some((run, results.get(&run.id)?))).collect()
}

fn scores(rows: &[Row]) -> Markup {
    html! {
        table {
            tr { th { "arm" } th { "runs" } @for (name, _) in SCORES { th { (name) } } }
            @for row in rows {
                tr {
                    td { (row.arm) } td { (row.runs) }
                    @for (score, against) in row.scores.iter().zip(&row.against_first) {
                        td {
                            @if let Some(score) = score {
                                (format!("{:.3} ± {:.3}", score.mean, score.deviation))
                            }
                            @if let Some(Against { test, corrected }) = against {
                                br; small {
                                    (format!("{:+.3}, {test}", test.difference)) br;
                                    (format!("p {:.3}, Holm {corrected:.3}", test.p))
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What CLIP-I and DINO to the subject compare with.
fn subject(runs: &[Run]) -> &'static str {
    let held_out = runs.iter().filter(|run| run.config.validation.held_out > 0.0).count();
    match held_out {
        0 => "the pictures that were learnt, so that a copy of them scores highest",
        count if count == runs.len() => "pictures held out of the training",
        _ => {
            "pictures held out of the training in the arms that hold some out, or else to those learnt"
        }
    }
}

/// What the untuned model and the truth itself score: the ends of the scale.
fn known(records: &[&Record], dino: usize) -> Markup {
    let mean = |scores: &dyn Fn(&Record) -> Option<f32>| {
        let values: Vec<f32> = records.iter().filter_map(|record| scores(record)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f32>() / values.len() as f32)
    };
    html! {
        p {
            @for (name, score) in [SCORES[CLIP_T], SCORES[dino]] {
                (name) ": untuned "
                (number(mean(&|record| score(&record.measured.before))))
                ", truth "
                (number(mean(&|record| score(record.measured.truth.as_ref()?))))
                ". "
            }
        }
    }
}

fn number(value: Option<f32>) -> String {
    value.map_or("not known".to_owned(), |value| format!("{value:.3}"))
}

fn costs(rows: &[Row]) -> Markup {
    html! {
        table {
            tr { th { "arm" } th { "trained numbers" } th { "file, kB" } th { "s a step" } th { "peak memory, MB" } }
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
