//! Personalising a diffusion model to a subject or a style.
//!
//! The one place where networks ([`soda_models`]), methods ([`soda_adapters`]) and the geometry of their
//! parameters ([`soda_linalg`]) meet. A run is a [`TrainConfig`], checked into a [`Personalisation`], run
//! into an [`Outcome`]:
//!
//! | file | what |
//! |---|---|
//! | `config` | settings, TOML |
//! | `dataset` | pictures and captions on disk |
//! | `encode` | the same as latents and text states, computed once |
//! | `trainer` | the loop |
//! | `optimizer` | Stiefel Adam and AdamW over batches of equal shapes |
//! | `evaluate` | CLIP-T, CLIP-I, DINO |
//! | `personalise` | all of it in order |
//! | `run`, `report`, `chart` | what is written |
//!
//! It prints nothing; progress comes as [`Event`]s.

mod chart;
mod config;
mod dataset;
mod encode;
mod error;
mod evaluate;
mod optimizer;
mod personalise;
mod report;
mod run;
mod trainer;

pub use config::{OptimizerConfig, SampleConfig, Schedule, TrainConfig};
pub use dataset::{Dataset, Example};
pub use encode::Encoded;
pub use error::TrainError;
pub use evaluate::{Reference, Scores, score};
pub use optimizer::AdapterOptimizer;
pub use personalise::{Event, Outcome, Personalisation};
pub use run::{RunFolder, write_file, write_png};
pub use trainer::train;
