//! Damaged plans and result files give a value or an error: no panic and no hang. `CONTRIBUTING.md` says how
//! to run the long form.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use soda_compare::{ComparisonConfig, EvaluationResult, ResultsFile, RunResult, StoredResult};
use soda_testing::fuzz;

#[test]
fn no_bytes_make_a_plan_panic() {
    let folder = soda_testing::workspace_path("examples/compare");
    let plans = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut seeds: Vec<_> = plans.map(|path| std::fs::read(path).unwrap()).collect();
    // A folder is listed in an order of its own.
    seeds.sort();
    fuzz("plan", &seeds, 1000, |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        let plan = ComparisonConfig::from_toml(text).and_then(ComparisonConfig::check);
        let _ = plan.map_err(|error| error.to_string());
    });
}

/// Damages the lines of finished tasks. The harness would find nothing in lines that are all refused.
fn fuzz_results<R: StoredResult>(name: &str, line: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let seed = format!("{line}\n").repeat(3).into_bytes();
    std::fs::write(&path, &seed).unwrap();
    ResultsFile::<R>::open(&path).unwrap();
    fuzz(name, &[seed], 400, |input| {
        std::fs::write(&path, input).unwrap();
        let _ = ResultsFile::<R>::open(&path).map_err(|error| error.to_string());
    });
}

const SCORES: &str = r#"{"clip_t": 0.25, "clip_i": 0.7, "dino": 0.5}"#;

#[test]
fn no_bytes_make_the_results_of_runs_panic() {
    let line = format!(
        r#"{{"id": "a", "arm": "a", "data": "d", "seed": 1, "before": {SCORES},
        "after": {SCORES}, "truth": null, "trace": [], "losses": [0.5], "num_params": 7,
        "file_size": 9, "seconds_per_step": 3e2, "peak_memory": null}}"#
    );
    fuzz_results::<RunResult>("results.jsonl", &line.replace('\n', " "));
}

#[test]
fn no_bytes_make_the_results_of_evaluations_panic() {
    let line = format!(
        r#"{{"id": "e", "series": "a", "at": [0.5], "scores": {SCORES}, "style_clip_i": 0.3}}"#
    );
    fuzz_results::<EvaluationResult>("probes.jsonl", &line);
}
