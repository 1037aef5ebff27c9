//! Compares fine-tuning methods on the same data sets and seeds.
//!
//! Each arm uses its best settings. They are chosen on data sets that are not scored.
//!
//! | module | contents |
//! |---|---|
//! | `plan` | the plan: arms x data sets x seeds, read from TOML and checked |
//! | `run` | one training run of an arm |
//! | `results` | tasks, their parallel execution, and JSON Lines files of finished tasks |
//! | `evaluation` | evaluations of finished runs: other adapter strengths, merged adapters |
//! | `statistics` | mean and standard deviation, paired permutation test, Holm correction |
//! | `score_table` | the scores, one row per arm |
//! | `report` | the HTML report with its figures and image grids |
//! | `peft` | finished runs in the format of PEFT's method comparison |
//!
//! This crate trains nothing. [`execute`] takes the function that turns a [`Run`] into [`RunMetrics`], and an
//! [`Evaluation`] into [`EvaluationScores`].

mod error;
mod evaluation;
mod peft;
mod plan;
mod report;
mod results;
mod run;
mod score_table;
mod statistics;

pub use error::{CompareError, PlanError};
pub use evaluation::{
    Evaluation, EvaluationKind, EvaluationResult, EvaluationScores, MergeConfig, MergeMode,
    StrengthConfig, StrengthPath, StrengthRow, strength_table,
};
pub use peft::peft_jsonl;
pub use plan::{
    ArmConfig, ChoiceConfig, ComparisonConfig, ComparisonPlan, DataSetConfig, RunGrid, SearchConfig,
};
pub use report::{ReportInput, report};
pub use results::{
    ResultsFile, RunMetrics, RunResult, Shard, StoredResult, Task, TaskEvent, TaskFailure,
    downsampled, execute, results_files,
};
pub use run::Run;
pub use score_table::{AdjustedTest, ArmRow, score_table};
pub use statistics::{
    ClusterUnit, PairedTest, Summary, holm_adjusted, paired_test, sign_flip_p_value,
};
