//! A whole run: base model, all steps, checkpoints, report.

pub(crate) mod base_model;
pub(crate) mod checkpoint;
mod data_notes;
mod due;
pub(crate) mod fingerprint;
mod follower;
pub(crate) mod history;
mod leader;
pub(crate) mod memory_plan;
pub(crate) mod memory_saving;
pub(crate) mod personalisation;
pub(crate) mod planning;
mod preparation;
mod rank_start;
pub(crate) mod report;
mod results;
pub(crate) mod summary;
mod training_loop;
