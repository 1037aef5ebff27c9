//! Damaged plans and result files give a value or an error: no panic and no hang. `CONTRIBUTING.md` says how
//! to run the long form.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use soda_compare::{ComparisonConfig, ResultsFile, RunResult};
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

#[test]
fn no_bytes_make_a_results_file_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.jsonl");
    let line =
        "{\"arm\": \"a\", \"data\": \"d\", \"seed\": 1, \"clip_t\": 0.25, \"seconds\": 3e2}\n";
    fuzz("results.jsonl", &[line.repeat(3).into_bytes()], 400, |input| {
        std::fs::write(&path, input).unwrap();
        let _ = ResultsFile::<RunResult>::open(&path).map(drop);
    });
}
