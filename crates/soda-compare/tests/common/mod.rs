//! A plan, and metrics that a formula gives in place of a training.

#![allow(dead_code, reason = "not every test file uses all of it")]

use soda_compare::{CompareError, ComparisonConfig, ComparisonPlan, Run, RunMetrics};
use soda_train::Scores;

pub(crate) const PLAN: &str = r#"
[train]
base = "toy"
steps = 10
batch_size = 2

[score]
data = ["subjects/a", "subjects/b"]
seeds = [0, 1]

[search]
data = ["subjects/c"]
seeds = [0]

[[arm]]
name = "one"

[[arm]]
name = "two"
search = [{ steps = 20 }, { steps = 30 }, { steps = 40 }]
"#;

pub(crate) fn plan(text: &str) -> Result<ComparisonPlan, CompareError> {
    ComparisonConfig::from_toml(text)?.check()
}

/// Metrics whose DINO score is best at 30 steps.
pub(crate) fn metrics(run: &Run) -> RunMetrics {
    let dino = 1.0 - (run.config.steps as f32 - 30.0).abs() / 100.0 + run.config.seed as f32 / 50.0;
    let scores = |dino: f32| Scores {
        clip_t: 0.5,
        clip_i: 0.5,
        dino,
        truth_clip_i: Some(0.5),
        truth_dino: Some(dino),
        drift: None,
        drift_dino: None,
    };
    RunMetrics {
        before: scores(0.1),
        after: scores(dino),
        truth: Some(scores(1.0)),
        trace: Vec::new(),
        losses: (1..40).map(|step| 1.0 / step as f32).collect(),
        num_params: 10,
        file_size: 100,
        seconds_per_step: 0.1,
        peak_memory: None,
        device_memory: None,
        start_time: None,
        total_seconds: None,
    }
}
