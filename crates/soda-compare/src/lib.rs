//! Comparing ways to personalise a model, fairly: the same subjects, the same seeds, each way with its own
//! best settings, found on subjects that are not scored.
//!
//! | file | what |
//! |---|---|
//! | `plan`, `data` | arms x data x seeds, TOML in, checked runs out |
//! | `results` | one JSON line a finished run; what is there is not run again |
//! | `peft` | the same by the names of PEFT's method comparison |
//! | `probe` | adapters of finished runs at other strengths, and merged |
//! | `execute` | several tasks at once, by whatever does one |
//! | `statistics`, `paired` | mean, spread; a paired permutation test over data sets |
//! | `table` | what the results say, an arm a row |
//! | `looks` | what the probes found |
//! | `curves` | scores over the steps |
//! | `plot`, `labels`, `sheets`, `report` | the same for the eye: one HTML file that needs no network |
//!
//! It trains nothing itself: [`execute()`] takes the function that turns a [`Run`] into a [`Measured`], and a
//! [`Probe`] into scores.

mod curves;
mod data;
mod error;
mod execute;
mod labels;
mod looks;
mod paired;
mod peft;
mod plan;
mod plot;
mod probe;
mod report;
mod results;
mod sheets;
mod statistics;
mod table;

pub use data::DataConfig;
pub use error::CompareError;
pub use execute::{Event, Failure, Task, execute};
pub use looks::{Place, places};
pub use paired::{Test, Unit, holm, paired, test};
pub use peft::peft;
pub use plan::{ArmConfig, Grid, Plan, PlanConfig, Run};
pub use probe::{Look, MergeConfig, Mode, Path, Probe, Seen, StrengthConfig};
pub use report::report;
pub use results::{Line, Measured, Record, Results, thinned};
pub use statistics::Summary;
pub use table::{Against, Row, table};
