//! The scores of a comparison: one row per arm, each tested against the first.

use std::collections::BTreeMap;
use std::path::Path;

use soda_train::Scores;

use crate::results::{ResultsFile, RunResult};
use crate::run::Run;
use crate::statistics::{PairedTest, Summary, holm_adjusted, paired_test};

/// The results of one arm.
///
/// The lists have six scores: CLIP-T, DINO to truth, CLIP-I to truth, DINO to subject, CLIP-I to subject,
/// drift.
#[derive(Clone, Debug)]
pub struct ArmRow {
    /// The name of the arm.
    pub arm: String,
    /// The number of finished runs.
    pub runs: usize,
    /// The number of trainable parameters.
    pub num_params: u64,
    /// The size of the adapter file, in bytes.
    pub file_size: u64,
    /// Seconds per optimizer step.
    pub seconds_per_step: f64,
    /// The largest peak memory of a run, in bytes.
    pub peak_memory: Option<u64>,
    /// Summaries of the scores over all runs.
    pub scores: Vec<Option<Summary>>,
    /// Summaries of the scores over data sets, each the mean of its seeds. Their standard errors count data
    /// sets.
    pub over_data_sets: Vec<Option<Summary>>,
    /// Tests of each score against the first arm on the same data set and seed. `None` for the first arm, or
    /// without a common run.
    pub against_first: Vec<Option<AdjustedTest>>,
}

/// A paired test of one score against the first arm, with its adjusted p value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdjustedTest {
    /// The test of this arm alone.
    pub test: PairedTest,
    /// The p value adjusted for the number of arms tested by this score ([`holm_adjusted`]).
    ///
    /// It is not adjusted for the number of scores: each is a separate question, and they are strongly
    /// dependent.
    pub adjusted_p: f64,
}

/// Reads one score, if it was measured.
pub(crate) type ReadScore = fn(&Scores) -> Option<f32>;

/// A score's name, and the function that reads it.
pub(crate) type Score = (&'static str, ReadScore);

/// The scores of an [`ArmRow`], in its order.
pub(crate) const SCORES: [Score; 6] = [
    ("CLIP-T", |scores| Some(scores.clip_t)),
    ("DINO to truth", |scores| scores.truth_dino),
    ("CLIP-I to truth", |scores| scores.truth_clip_i),
    ("DINO to subject", |scores| Some(scores.dino)),
    ("CLIP-I to subject", |scores| Some(scores.clip_i)),
    ("drift", |scores| scores.drift),
];

/// The index of CLIP-T in [`SCORES`].
pub(crate) const CLIP_T: usize = 0;
/// The index of the drift in [`SCORES`].
pub(crate) const DRIFT: usize = 5;

/// The indices of the DINO and CLIP-I similarity in [`SCORES`]: to the truth if it is known, otherwise to
/// the subject.
pub(crate) fn similarity_scores(rows: &[ArmRow]) -> [usize; 2] {
    let known = rows.iter().any(|row| row.scores[1].is_some());
    if known { [1, 2] } else { [3, 4] }
}

/// Summarises the finished `runs`: one row per arm, in the order of `runs`.
pub fn score_table(runs: &[Run], results: &ResultsFile<RunResult>) -> Vec<ArmRow> {
    let mut arms: Vec<&str> = Vec::new();
    for run in runs {
        if !arms.contains(&run.arm.as_str()) {
            arms.push(&run.arm);
        }
    }
    let results_of = |arm: &str| -> Vec<&RunResult> {
        let runs = runs.iter().filter(|run| run.arm == arm);
        runs.filter_map(|run| results.get(&run.id)).collect()
    };
    let first = arms.first().map(|arm| results_of(arm)).unwrap_or_default();
    let rows = arms.iter().filter_map(|arm| arm_row(arm, &results_of(arm), &first));
    let mut rows: Vec<ArmRow> = rows.collect();
    for score in 0..SCORES.len() {
        let tested = || rows.iter().filter_map(|row| Some(row.against_first[score]?.test.p));
        let adjusted = holm_adjusted(&tested().collect::<Vec<_>>());
        let tested = rows.iter_mut().filter_map(|row| row.against_first[score].as_mut());
        tested.zip(adjusted).for_each(|(against, p)| against.adjusted_p = p);
    }
    rows
}

fn arm_row(arm: &str, results: &[&RunResult], first: &[&RunResult]) -> Option<ArmRow> {
    let one = results.first()?;
    let mean = |value: fn(&RunResult) -> f64| {
        results.iter().map(|result| value(result)).sum::<f64>() / results.len() as f64
    };
    let each = |summary: &dyn Fn(ReadScore) -> Option<Summary>| {
        SCORES.iter().map(|(_, score)| summary(*score)).collect()
    };
    Some(ArmRow {
        arm: arm.to_owned(),
        runs: results.len(),
        num_params: one.metrics.num_params,
        file_size: one.metrics.file_size,
        seconds_per_step: mean(|result| result.metrics.seconds_per_step),
        peak_memory: results.iter().filter_map(|result| result.metrics.peak_memory).max(),
        scores: each(&|score| Summary::from_values(&values(results, score))),
        over_data_sets: each(&|score| Summary::from_values(&data_set_means(results, score))),
        against_first: SCORES
            .iter()
            .map(|(_, score)| {
                let test = paired_test(differences(results, first, *score))?;
                let others = first.first().is_some_and(|first| first.arm != arm);
                others.then_some(AdjustedTest { test, adjusted_p: test.p })
            })
            .collect(),
    })
}

fn values(results: &[&RunResult], score: ReadScore) -> Vec<f64> {
    results.iter().filter_map(|result| score(&result.metrics.after)).map(f64::from).collect()
}

/// The mean score of each data set.
fn data_set_means(results: &[&RunResult], score: ReadScore) -> Vec<f64> {
    let mut sets: BTreeMap<&Path, Vec<&RunResult>> = BTreeMap::new();
    for result in results {
        sets.entry(&result.data).or_default().push(result);
    }
    let mean =
        |results: Vec<&RunResult>| Some(Summary::from_values(&values(&results, score))?.mean);
    sets.into_values().filter_map(mean).collect()
}

/// The differences to the first arm on the same data set and seed, each with its data set.
fn differences<'a>(
    results: &[&'a RunResult],
    first: &[&RunResult],
    score: ReadScore,
) -> Vec<(&'a Path, f64)> {
    let partner = |result: &RunResult| {
        first.iter().find(|other| other.data == result.data && other.seed == result.seed)
    };
    let difference = |result: &&'a RunResult| {
        let (ours, theirs) = (score(&result.metrics.after)?, partner(result)?);
        let theirs = score(&theirs.metrics.after)?;
        Some((result.data.as_path(), f64::from(ours) - f64::from(theirs)))
    };
    results.iter().filter_map(difference).collect()
}
