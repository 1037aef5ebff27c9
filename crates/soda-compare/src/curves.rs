//! Scores over the steps: when an arm has learnt what it will, and what the steps after that cost.

use std::collections::BTreeMap;

use soda_train::plot::{Line, lines};

use crate::plan::Run;
use crate::results::Record;
use crate::statistics::Summary;
use crate::table::{Read, SCORES};

/// A figure of each of the scores `shown` (places in [`SCORES`]), an arm a line. Empty where nothing was drawn on
/// the way.
pub(crate) fn curves(arms: &[(&str, Vec<(&Run, &Record)>)], shown: &[usize]) -> Vec<String> {
    let figure = |(name, score): (&str, Read)| {
        let line = |(arm, runs): &(&str, Vec<(&Run, &Record)>)| Line {
            name: (*arm).to_owned(),
            points: curve(runs, score),
            faint: false,
        };
        lines("step", name, &arms.iter().map(line).collect::<Vec<_>>())
    };
    let figures = shown.iter().map(|index| figure(SCORES[*index]));
    figures.filter(|figure| !figure.is_empty()).collect()
}

/// The mean of an arm's runs after so many steps, from the untuned model to the end. Runs that were not drawn on the
/// way are left out, or the ends would be means of other runs than what is between.
fn curve(runs: &[(&Run, &Record)], score: Read) -> Vec<(f64, f64)> {
    let mut at: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (run, record) in runs.iter().filter(|(_, record)| !record.measured.trace.is_empty()) {
        let measured = &record.measured;
        let ends = [(0, measured.before), (run.config.steps, measured.after)];
        let way = measured.trace.iter().map(|scored| (scored.step, scored.scores));
        for (step, scores) in way.chain(ends) {
            at.entry(step).or_default().extend(score(&scores).map(f64::from));
        }
    }
    let mean = |(step, values): (usize, Vec<f64>)| Some((step as f64, Summary::of(&values)?.mean));
    at.into_iter().filter_map(mean).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use soda_train::{Scored, Scores};

    use super::*;
    use crate::execute::Task as _;
    use crate::plan::PlanConfig;
    use crate::results::Measured;

    const PLAN: &str = "[train]\nbase = 'b'\nsteps = 30\nbatch_size = 1\n\
                        [score]\ndata = ['a', 'b', 'c']\nseeds = [0]\n[[arm]]\nname = 'one'\n";

    fn scores(clip_t: f32, drift: Option<f32>) -> Scores {
        let (truth_clip_i, truth_dino) = (None, None);
        let drift_dino = None;
        Scores { clip_t, clip_i: 0.5, dino: 0.5, truth_clip_i, truth_dino, drift, drift_dino }
    }

    #[test]
    fn a_curve_is_the_mean_of_the_runs_drawn_on_the_way_from_before_to_after() {
        let plan = PlanConfig::from_toml(PLAN).unwrap().check().unwrap();
        let results = crate::Results::open(&tempfile::tempdir().unwrap().path().join("r")).unwrap();
        let runs = plan.score_runs(&results);
        let measured = |first: f32, trace: &[(usize, f32)]| Measured {
            before: scores(first, Some(0.0)),
            after: scores(first + 0.75, None),
            truth: None,
            trace: trace
                .iter()
                .map(|(step, value)| Scored { step: *step, scores: scores(*value, None) })
                .collect(),
            losses: vec![],
            num_params: 1,
            file_size: 1,
            seconds_per_step: 1.0,
            peak_memory: None,
        };
        let all = [
            measured(0.0, &[(10, 0.25), (20, 0.5)]),
            measured(1.0, &[(10, 0.75), (20, 1.0)]),
            // A line from before traces were kept.
            measured(8.0, &[]),
        ];
        let records: Vec<Record> =
            runs.iter().zip(all).map(|(run, measured)| run.line(measured)).collect();
        let pairs: Vec<(&Run, &Record)> = runs.iter().zip(&records).collect();
        let found = curve(&pairs, SCORES[0].1);
        assert_eq!(found, [(0.0, 0.5), (10.0, 0.5), (20.0, 0.75), (30.0, 1.25)]);
        // What was not measured everywhere has the points that there are.
        assert_eq!(curve(&pairs, SCORES[5].1), [(0.0, 0.0)]);
        assert!(curves(&[("one", pairs[2..].to_vec())], &[0, 5]).is_empty());
        assert_eq!(curves(&[("one", pairs)], &[0, 1, 5]).len(), 2, "there are no truths");
    }
}
