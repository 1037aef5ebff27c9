//! Evaluations of finished runs: adapters at other strengths, and adapters of two arms merged.
//!
//! They train nothing, and no settings are chosen by them.

mod config;
mod job;
mod strength_table;

pub use config::{MergeConfig, StrengthConfig};
pub use job::{
    Evaluation, EvaluationKind, EvaluationResult, EvaluationScores, MergeMode, StrengthPath,
};
pub(crate) use strength_table::EVALUATION_SCORES;
pub use strength_table::{StrengthRow, strength_table};
