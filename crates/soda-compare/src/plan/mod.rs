//! The plan of a comparison: arms x data sets x seeds, read from TOML and checked.

mod check;
mod choice;
mod comparison_plan;
mod config;
mod data_set;

pub use choice::ChoiceConfig;
pub use comparison_plan::ComparisonPlan;
pub use config::{ArmConfig, ComparisonConfig, RunGrid, SearchConfig};
pub use data_set::DataSetConfig;
