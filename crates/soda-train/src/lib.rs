//! Personalising a diffusion model to a subject or a style.
//!
//! The one place where networks ([`soda_models`]), methods ([`soda_adapters`]) and the geometry of their
//! parameters ([`soda_linalg`]) meet. A run is a [`TrainConfig`], checked into a [`Personalisation`], run
//! into an [`Outcome`]:
//!
//! | folder | what |
//! |---|---|
//! | `config` | settings: TOML, presets, single settings |
//! | `output` | files: the run's folder, figures, pages, TensorBoard events, tensors |
//! | `data` | pictures, captions, masks, their encodings, the cache, batches |
//! | `step` | loss, gradients, optimizer and the state between steps |
//! | `eval` | validation loss, sampled pictures, scores |
//! | `run` | everything in order: base model, steps, checkpoints, report |
//!
//! Each folder imports those above it, and no folder one below it.
//!
//! It prints nothing; progress comes as [`Event`]s.

mod config;
mod data;
mod error;
mod eval;
mod event;
mod output;
mod run;
mod step;
#[cfg(test)]
mod testing;

pub use config::{
    AugmentConfig, BucketConfig, CheckpointConfig, GradientCheckpointing, Loss,
    LossScaleConfig, MaskConfig, MaskSource, ObjectiveConfig, OptimizerConfig, PRESETS, Precision,
    Preset, PriorConfig, SampleConfig, Schedule, TextEncoderConfig, TokensConfig, TrainConfig,
    ValidationConfig, apply_setting, preset,
};
pub use data::batch::Batch;
pub use data::cache::EncodeCache;
pub use data::dataset::{Dataset, Example, expand_trigger};
pub use data::encode::{EncodeConfig, EncodedDataset};
pub use data::prompts::Prompts;
pub use error::TrainError;
pub use eval::pictures::DatasetImages;
pub use eval::sampling::{StepScores, read_step_scores};
pub use eval::scores::{ScoreReference, Scores, drift, score};
pub use event::Event;
pub use output::run_folder::{RunFolder, write_file, write_png};
pub use output::{page, plot};
pub use run::checkpoint::Checkpoint;
pub use run::history::{History, ValidationMetrics};
pub use run::personalisation::{Personalisation, RunTarget};
pub use run::summary::RunSummary;
pub use step::backward::{ConditionGradient, DenoiserInputs, LossAndGradients};
pub use step::loss_scale::LossScale;
pub use step::metrics::StepMetrics;
pub use step::trainer::{StepData, Trainer, TrainerState};
