//! Scores over the training steps.

use std::collections::BTreeMap;

use soda_train::plot::{Line, line_chart};

use crate::results::RunResult;
use crate::run::Run;
use crate::score_table::{ReadScore, SCORES};
use crate::statistics::Summary;

/// Draws a figure for each score in `shown` (indices of [`SCORES`]) with one curve per arm.
///
/// Returns no figure for a score that was not measured at intermediate steps.
pub(super) fn score_curves(
    arms: &[(&str, Vec<(&Run, &RunResult)>)],
    shown: &[usize],
) -> Vec<String> {
    let figure = |(name, score): (&str, ReadScore)| {
        let line = |(arm, runs): &(&str, Vec<(&Run, &RunResult)>)| Line {
            name: (*arm).to_owned(),
            points: curve(runs, score),
            faint: false,
        };
        line_chart("step", name, &arms.iter().map(line).collect::<Vec<_>>())
    };
    let figures = shown.iter().map(|index| figure(SCORES[*index]));
    figures.filter(|figure| !figure.is_empty()).collect()
}

/// The mean score of an arm's runs at each step, from the base model to the last step.
///
/// Runs without scores at intermediate steps are left out. Otherwise, the ends would be means over other
/// runs.
fn curve(runs: &[(&Run, &RunResult)], score: ReadScore) -> Vec<(f64, f64)> {
    let mut at: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (run, result) in runs.iter().filter(|(_, result)| !result.metrics.trace.is_empty()) {
        let metrics = &result.metrics;
        let ends = [(0, metrics.before), (run.config.steps, metrics.after)];
        let way = metrics.trace.iter().map(|scored| (scored.step, scored.scores));
        for (step, scores) in way.chain(ends) {
            at.entry(step).or_default().extend(score(&scores).map(f64::from));
        }
    }
    let mean = |(step, values): (usize, Vec<f64>)| {
        Some((step as f64, Summary::from_values(&values)?.mean))
    };
    at.into_iter().filter_map(mean).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use soda_train::{Scores, StepScores};

    use super::*;
    use crate::plan::ComparisonConfig;
    use crate::results::RunMetrics;
    use crate::results::Task as _;

    const PLAN: &str = "[train]\nbase = 'b'\nsteps = 30\nbatch_size = 1\n\
                        [score]\ndata = ['a', 'b', 'c']\nseeds = [0]\n[[arm]]\nname = 'one'\n";

    fn scores(clip_t: f32, drift: Option<f32>) -> Scores {
        let (truth_clip_i, truth_dino) = (None, None);
        let drift_dino = None;
        Scores { clip_t, clip_i: 0.5, dino: 0.5, truth_clip_i, truth_dino, drift, drift_dino }
    }

    #[test]
    fn a_curve_averages_the_runs_that_have_intermediate_scores() {
        let plan = ComparisonConfig::from_toml(PLAN).unwrap().check().unwrap();
        let file =
            crate::ResultsFile::open(&tempfile::tempdir().unwrap().path().join("r")).unwrap();
        let runs = plan.score_runs(&file);
        let metrics = |first: f32, trace: &[(usize, f32)]| RunMetrics {
            before: scores(first, Some(0.0)),
            after: scores(first + 0.75, None),
            truth: None,
            trace: trace
                .iter()
                .map(|(step, value)| StepScores { step: *step, scores: scores(*value, None) })
                .collect(),
            losses: vec![],
            num_params: 1,
            file_size: 1,
            seconds_per_step: 1.0,
            peak_memory: None,
            device_memory: None,
            start_time: None,
            total_seconds: None,
        };
        let all = [
            metrics(0.0, &[(10, 0.25), (20, 0.5)]),
            metrics(1.0, &[(10, 0.75), (20, 1.0)]),
            // A result of a version that stored no trace.
            metrics(8.0, &[]),
        ];
        let results: Vec<RunResult> =
            runs.iter().zip(all).map(|(run, metrics)| run.stored(metrics)).collect();
        let pairs: Vec<(&Run, &RunResult)> = runs.iter().zip(&results).collect();
        let found = curve(&pairs, SCORES[0].1);
        assert_eq!(found, [(0.0, 0.5), (10.0, 0.5), (20.0, 0.75), (30.0, 1.25)]);
        // The drift was measured at step 0 only.
        assert_eq!(curve(&pairs, SCORES[5].1), [(0.0, 0.0)]);
        assert!(score_curves(&[("one", pairs[2..].to_vec())], &[0, 5]).is_empty());
        assert_eq!(
            score_curves(&[("one", pairs)], &[0, 1, 5]).len(),
            2,
            "there are no true images"
        );
    }
}
