//! Personalising a diffusion model to a subject or a style.
//!
//! The one place where networks ([`soda_models`]), methods ([`soda_adapters`]) and the geometry of their
//! parameters ([`soda_linalg`]) meet. A run is a [`TrainConfig`], checked into a [`Personalisation`], run
//! into an [`Outcome`]:
//!
//! | file | what |
//! |---|---|
//! | `config` | settings: TOML, presets, single settings |
//! | `dataset`, `pictures` | pictures and captions on disk |
//! | `encode` | the same as latents and text states, computed once |
//! | `batch`, `loss` | one step's samples, what they cost |
//! | `gradients`, `stacks`, `optimizer`, `ema` | from gradients to the next adapter |
//! | `trainer` | a step, and the state between steps |
//! | `training`, `checkpoint` | all steps, stopped and resumed; that state on disk |
//! | `class` | the class's pictures, for prior preservation |
//! | `evaluate` | CLIP-T, CLIP-I, DINO |
//! | `personalise` | all of it in order |
//! | `run`, `report`, `chart` | what is written |
//!
//! It prints nothing; progress comes as [`Event`]s.

mod batch;
mod chart;
mod checkpoint;
mod class;
mod config;
mod dataset;
mod ema;
mod encode;
mod error;
mod evaluate;
mod gradients;
mod loss;
mod optimizer;
mod personalise;
mod pictures;
mod report;
mod run;
mod stacks;
mod trainer;
mod training;

pub use batch::Batch;
pub use checkpoint::Checkpoint;
pub use config::{
    CheckpointConfig, Loss, ObjectiveConfig, OptimizerConfig, PRESETS, Preset, PriorConfig,
    SampleConfig, Schedule, TrainConfig, preset, set,
};
pub use dataset::{Dataset, Example};
pub use encode::Encoded;
pub use error::TrainError;
pub use evaluate::{Reference, Scores, score};
pub use gradients::AdapterGradients;
pub use optimizer::{AdapterOptimizer, OptimizerState};
pub use personalise::{Event, Outcome, Personalisation, Place};
pub use run::{RunFolder, write_file, write_png};
pub use trainer::{Material, Trainer, TrainerState};
