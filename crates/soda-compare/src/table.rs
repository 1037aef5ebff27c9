//! What the results say: an arm a row, each tested against the first.

use std::collections::BTreeMap;
use std::path::Path;

use soda_train::Scores;

use crate::paired::{Test, holm, test};
use crate::plan::Run;
use crate::results::{Record, Results};
use crate::statistics::Summary;

/// One arm.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name.
    pub arm: String,
    /// Runs that finished.
    pub runs: usize,
    /// Trained numbers.
    pub num_params: u64,
    /// Bytes of the adapter file.
    pub file_size: u64,
    /// Seconds a step.
    pub seconds_per_step: f64,
    /// Most memory of any run, bytes.
    pub peak_memory: Option<u64>,
    /// Summaries of CLIP-T, DINO and CLIP-I to the truth, DINO and CLIP-I to the subject, drift, over all runs.
    pub scores: Vec<Option<Summary>>,
    /// The same over data sets, each the mean of its seeds: what a standard error is taken from.
    pub over_data: Vec<Option<Summary>>,
    /// Difference of each score to the first arm's on the same data and seed. None for the first arm, or with no pair.
    pub against_first: Vec<Option<Against>>,
}

/// An arm beside the first, by one score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Against {
    /// The arm's own test.
    pub test: Test,
    /// Its p, corrected for all arms that are tested by this score ([`holm`]). Scores are not counted as well: each is a
    /// question of its own, and they are far from independent.
    pub corrected: f64,
}

/// Where a score is read.
pub(crate) type Read = fn(&Scores) -> Option<f32>;

/// A score's name, and where it is read.
pub(crate) type Score = (&'static str, Read);

/// The scores reported.
pub(crate) const SCORES: [Score; 6] = [
    ("CLIP-T", |scores| Some(scores.clip_t)),
    ("DINO to truth", |scores| scores.truth_dino),
    ("CLIP-I to truth", |scores| scores.truth_clip_i),
    ("DINO to subject", |scores| Some(scores.dino)),
    ("CLIP-I to subject", |scores| Some(scores.clip_i)),
    ("drift", |scores| scores.drift),
];

/// Places in [`SCORES`].
pub(crate) const CLIP_T: usize = 0;
/// Likewise.
pub(crate) const DRIFT: usize = 5;

/// Where DINO and CLIP-I stand: to the truth where that is known, or else to the subject.
pub(crate) fn likeness(rows: &[Row]) -> [usize; 2] {
    let known = rows.iter().any(|row| row.scores[1].is_some());
    if known { [1, 2] } else { [3, 4] }
}

/// A row for each arm that finished a run, in the order of `runs`.
pub fn table(runs: &[Run], results: &Results<Record>) -> Vec<Row> {
    let mut arms: Vec<&str> = Vec::new();
    for run in runs {
        if !arms.contains(&run.arm.as_str()) {
            arms.push(&run.arm);
        }
    }
    let of = |arm: &str| -> Vec<&Record> {
        let runs = runs.iter().filter(|run| run.arm == arm);
        runs.filter_map(|run| results.get(&run.id)).collect()
    };
    let first = arms.first().map(|arm| of(arm)).unwrap_or_default();
    let mut rows: Vec<Row> = arms.iter().filter_map(|arm| row(arm, &of(arm), &first)).collect();
    for score in 0..SCORES.len() {
        let tested = || rows.iter().filter_map(|row| Some(row.against_first[score]?.test.p));
        let corrected = holm(&tested().collect::<Vec<_>>());
        let tested = rows.iter_mut().filter_map(|row| row.against_first[score].as_mut());
        tested.zip(corrected).for_each(|(against, p)| against.corrected = p);
    }
    rows
}

fn row(arm: &str, records: &[&Record], first: &[&Record]) -> Option<Row> {
    let one = records.first()?;
    let mean = |value: fn(&Record) -> f64| {
        records.iter().map(|record| value(record)).sum::<f64>() / records.len() as f64
    };
    let each = |summary: &dyn Fn(Read) -> Option<Summary>| {
        SCORES.iter().map(|(_, score)| summary(*score)).collect()
    };
    Some(Row {
        arm: arm.to_owned(),
        runs: records.len(),
        num_params: one.measured.num_params,
        file_size: one.measured.file_size,
        seconds_per_step: mean(|record| record.measured.seconds_per_step),
        peak_memory: records.iter().filter_map(|record| record.measured.peak_memory).max(),
        scores: each(&|score| Summary::of(&values(records, score))),
        over_data: each(&|score| Summary::of(&means(records, score))),
        against_first: SCORES
            .iter()
            .map(|(_, score)| {
                let test = test(differences(records, first, *score))?;
                let others = first.first().is_some_and(|first| first.arm != arm);
                others.then_some(Against { test, corrected: test.p })
            })
            .collect(),
    })
}

fn values(records: &[&Record], score: Read) -> Vec<f64> {
    records.iter().filter_map(|record| score(&record.measured.after)).map(f64::from).collect()
}

/// Of each data set.
fn means(records: &[&Record], score: Read) -> Vec<f64> {
    let mut sets: BTreeMap<&Path, Vec<&Record>> = BTreeMap::new();
    for record in records {
        sets.entry(&record.data).or_default().push(record);
    }
    let mean = |records: Vec<&Record>| Some(Summary::of(&values(&records, score))?.mean);
    sets.into_values().filter_map(mean).collect()
}

/// On the pairs of equal data and seed, each with its data.
fn differences<'a>(records: &[&'a Record], first: &[&Record], score: Read) -> Vec<(&'a Path, f64)> {
    let partner = |record: &Record| {
        first.iter().find(|other| other.data == record.data && other.seed == record.seed)
    };
    let difference = |record: &&'a Record| {
        let (ours, theirs) = (score(&record.measured.after)?, partner(record)?);
        let theirs = score(&theirs.measured.after)?;
        Some((record.data.as_path(), f64::from(ours) - f64::from(theirs)))
    };
    records.iter().filter_map(difference).collect()
}
