//! What the results say: an arm a row, each tested against the first.

use soda_train::Scores;

use crate::plan::Run;
use crate::results::{Record, Results};
use crate::statistics::{Summary, paired};

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
    /// Summaries of CLIP-T, DINO and CLIP-I to the truth, DINO and CLIP-I to the subject, drift.
    pub scores: Vec<Option<Summary>>,
    /// Difference of each score to the first arm's on the same data and seed: its mean, and how often
    /// chance gives as much ([`paired`]). None for the first arm, or with no pair.
    pub against_first: Vec<Option<(f64, f64)>>,
}

/// A score's name, and where it is read.
pub(crate) type Score = (&'static str, fn(&Scores) -> Option<f32>);

/// The scores reported; the first two are what the plot shows, over and up.
pub(crate) const SCORES: [Score; 6] = [
    ("CLIP-T", |scores| Some(scores.clip_t)),
    ("DINO to truth", |scores| scores.truth_dino),
    ("CLIP-I to truth", |scores| scores.truth_clip_i),
    ("DINO to subject", |scores| Some(scores.dino)),
    ("CLIP-I to subject", |scores| Some(scores.clip_i)),
    ("drift", |scores| scores.drift),
];

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
    arms.iter().filter_map(|arm| row(arm, &of(arm), &first)).collect()
}

fn row(arm: &str, records: &[&Record], first: &[&Record]) -> Option<Row> {
    let one = records.first()?;
    let mean = |value: fn(&Record) -> f64| {
        records.iter().map(|record| value(record)).sum::<f64>() / records.len() as f64
    };
    Some(Row {
        arm: arm.to_owned(),
        runs: records.len(),
        num_params: one.measured.num_params,
        file_size: one.measured.file_size,
        seconds_per_step: mean(|record| record.measured.seconds_per_step),
        peak_memory: records.iter().filter_map(|record| record.measured.peak_memory).max(),
        scores: SCORES.iter().map(|(_, score)| Summary::of(&values(records, *score))).collect(),
        against_first: SCORES
            .iter()
            .map(|(_, score)| {
                let differences = differences(records, first, *score);
                let mean = Summary::of(&differences)?.mean;
                (first[0].arm != arm).then(|| (mean, paired(&differences)))
            })
            .collect(),
    })
}

fn values(records: &[&Record], score: fn(&Scores) -> Option<f32>) -> Vec<f64> {
    records.iter().filter_map(|record| score(&record.measured.after)).map(f64::from).collect()
}

/// On the pairs of equal data and seed.
fn differences(
    records: &[&Record],
    first: &[&Record],
    score: fn(&Scores) -> Option<f32>,
) -> Vec<f64> {
    let partner = |record: &Record| {
        first.iter().find(|other| other.data == record.data && other.seed == record.seed)
    };
    let difference = |record: &&Record| {
        let (ours, theirs) = (score(&record.measured.after)?, partner(record)?);
        Some(f64::from(ours) - f64::from(score(&theirs.measured.after)?))
    };
    records.iter().filter_map(difference).collect()
}
