//! Tasks that run in parallel, and the JSON Lines files that keep their results.

mod file;
mod run_result;
mod shard;
mod task;

pub use file::{ResultsFile, StoredResult};
pub use run_result::{RunMetrics, RunResult, downsampled};
pub use shard::{Shard, results_files};
pub use task::{Task, TaskEvent, TaskFailure, execute};
