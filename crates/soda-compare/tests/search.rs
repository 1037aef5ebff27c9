//! The choice of settings among candidates.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::{PLAN, metrics, plan};
use soda_compare::{ResultsFile, Run, execute};

#[test]
fn a_failed_run_stops_no_other_and_is_executed_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut results = ResultsFile::open(&folder.path().join("results.jsonl")).unwrap();
    let plan = plan(PLAN).unwrap();
    let search = plan.search_runs(&results);
    let fail = |_: usize, run: &Run| match run.config.steps {
        30 => Err("out of luck".to_owned()),
        _ => Ok(metrics(run)),
    };
    let failures = execute(&search, 1, &mut results, fail, |_| ()).unwrap();
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].reason, "out of luck");
    // The failed candidate may be the best: the arm waits, and the other arm does not.
    assert_eq!(plan.waiting_arms(&results), ["two"]);
    assert!(plan.score_runs(&results).iter().all(|run| run.arm == "one"));
    assert!(
        execute(&search, 1, &mut results, |_, run| Ok(metrics(run)), |_| ()).unwrap().is_empty()
    );
    assert!(plan.waiting_arms(&results).is_empty());
    let scored = plan.score_runs(&results);
    assert_eq!(scored.iter().filter(|run| run.arm == "two").count(), 4);
    assert!(scored.iter().all(|run| run.arm != "two" || run.config.steps == 30));
}

/// A candidate that has run and diverged in the scores was tried: it is passed over, and nothing waits.
#[test]
fn a_candidate_without_a_finite_score_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut results = ResultsFile::open(&folder.path().join("results.jsonl")).unwrap();
    let plan = plan(PLAN).unwrap();
    let spoilt = |_: usize, run: &Run| {
        let mut metrics = metrics(run);
        if run.config.steps == 30 {
            metrics.after.truth_dino = Some(f32::NAN);
        }
        Ok(metrics)
    };
    let search = plan.search_runs(&results);
    execute(&search, 1, &mut results, spoilt, |_| ()).unwrap();
    assert!(plan.waiting_arms(&results).is_empty());
    let scored = plan.score_runs(&results);
    assert!(scored.iter().all(|run| run.config.steps != 30));
    assert_eq!(scored.iter().filter(|run| run.arm == "two").count(), 4);
}

/// Runs a search to its end and returns the steps of the chosen candidate and the number of runs.
fn searched(text: &str, after: impl Fn(&Run) -> [f32; 3] + Sync) -> (usize, usize) {
    let folder = tempfile::tempdir().unwrap();
    let mut results = ResultsFile::open(&folder.path().join("results.jsonl")).unwrap();
    let plan = plan(text).unwrap();
    let trained = AtomicUsize::new(0);
    let train = |_: usize, run: &Run| {
        trained.fetch_add(1, Ordering::Relaxed);
        let mut metrics = metrics(run);
        let [likeness, clip_t, drift] = after(run);
        metrics.after.truth_dino = Some(likeness);
        metrics.after.truth_clip_i = Some(likeness);
        (metrics.after.clip_t, metrics.after.drift) = (clip_t, Some(drift));
        Ok(metrics)
    };
    while !plan.search_is_finished(&results) {
        let runs = plan.search_runs(&results);
        execute(&runs, 1, &mut results, train, |_| ()).unwrap();
    }
    let runs = trained.load(Ordering::Relaxed);
    assert_eq!(runs, plan.num_searched());
    let scored = plan.score_runs(&results);
    let chosen = scored.iter().find(|run| run.arm == "two").unwrap();
    (chosen.config.steps, runs)
}

#[test]
fn a_search_may_ask_for_a_point_on_the_front() {
    let front = |run: &Run| match run.config.steps {
        20 => [0.3, 0.9, 0.05],
        30 => [0.5, 0.7, 0.10],
        _ => [0.7, 0.5, 0.30],
    };
    let with = |rule: &str| {
        let head = "[train]\nsamples.unrelated = [\"a tree\"]\n";
        let text = PLAN.replacen("[train]\n", head, 1);
        searched(&text.replacen("[search]\n", &format!("[search]\n{rule}\n"), 1), front).0
    };
    assert_eq!(with(""), 40, "the most likeness");
    assert_eq!(with("choose.clip_t_at_least = 0.6"), 30);
    assert_eq!(with("choose.drift_at_most = 0.06"), 20);
    assert_eq!(with("choose = { clip_t_at_least = 0.6, drift_at_most = 0.09 }"), 20);
    // No candidate keeps this: the nearest one is chosen.
    assert_eq!(with("choose.clip_t_at_least = 0.99"), 20);
}

#[test]
fn a_rule_that_cannot_be_measured_is_refused() {
    let with = |rule: &str| PLAN.replacen("[search]\n", &format!("[search]\n{rule}\n"), 1);
    let refused = |rule: &str| plan(&with(rule)).unwrap_err().to_string();
    assert!(refused("choose.drift_at_most = 0.1").contains("samples.unrelated"));
    assert!(refused("choose.clip_t_at_least = nan").contains("search.choose.clip_t_at_least"));
    assert!(refused("choose.likeness = 1").contains("likeness"));
}

/// Nine candidates on four runs each cost twelve runs, as many as three candidates without halving.
#[test]
fn halving_tries_nine_candidates_at_the_cost_of_three() {
    let candidates: Vec<_> = (1..=9).map(|n| format!("{{ steps = {n}0 }}")).collect();
    let text = PLAN
        .replacen(
            "search = [{ steps = 20 }, { steps = 30 }, { steps = 40 }]",
            &format!("search = [{}]", candidates.join(", ")),
            1,
        )
        .replacen(
            "data = [\"subjects/c\"]\nseeds = [0]",
            "halving = true\ndata = [\"subjects/c\", \"subjects/d\"]\nseeds = [0, 1]",
            1,
        );
    let peak = |run: &Run| [1.0 - (run.config.steps as f32 - 60.0).abs() / 100.0, 0.5, 0.0];
    assert_eq!(searched(&text, peak), (60, 12));
    // A candidate whose score is not finite is dropped.
    let spoilt = |run: &Run| if run.config.steps == 60 { [f32::NAN; 3] } else { peak(run) };
    let (steps, runs) = searched(&text, spoilt);
    assert!([50, 70].contains(&steps) && runs == 12, "{steps} {runs}");
}
