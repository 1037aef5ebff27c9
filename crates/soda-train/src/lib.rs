//! Personalising a diffusion model to a subject or a style.
//!
//! The one place where networks ([`soda_models`]), methods ([`soda_adapters`]) and the geometry of their
//! parameters ([`soda_linalg`]) meet. A run is a [`TrainConfig`], checked into a [`Personalisation`], run
//! into an [`Outcome`]:
//!
//! | file | what |
//! |---|---|
//! | `config` | settings: TOML, presets, single settings |
//! | `base` | the model that is changed, with its new words |
//! | `dataset`, `pictures` | pictures and captions on disk |
//! | `variants`, `buckets` | their crops, mirror images and orders of tags; the size of each |
//! | `masks` | how much each part of a picture counts |
//! | `encode`, `latents`, `texts` | all of it as latents and text states or tokens, made once |
//! | `cache`, `tensors` | the same on disk, for the next run; files of tensors |
//! | `streams`, `order`, `batch` | everything random; which pictures a step sees; its samples |
//! | `precision`, `loss` | what they cost, in which precision |
//! | `scale` | what f16 needs beside |
//! | `parts`, `prompts` | which networks learn; text encoders that do, and their gradients |
//! | `backward` | the gradients of that, with one tape or one a stage |
//! | `gradients`, `stacks`, `optimizer`, `adamw8`, `prodigy`, `ema` | from gradients to the next adapter |
//! | `trainer` | a step, and the state between steps |
//! | `training`, `checkpoint` | all steps, stopped and resumed; that state on disk |
//! | `class` | the class's pictures, for prior preservation |
//! | `validation` | a loss whose values can be compared |
//! | `sampling`, `evaluate` | pictures of the prompts; CLIP-T, CLIP-I, DINO |
//! | `personalise` | all of it in order |
//! | `history`, `run`, `report`, `tensorboard` | what is measured and written |
//! | [`plot`], [`page`] | figures and pages that need no network |
//!
//! It prints nothing; progress comes as [`Event`]s.

mod adamw8;
mod backward;
mod base;
mod batch;
mod buckets;
mod cache;
mod checkpoint;
mod class;
mod config;
mod dataset;
mod ema;
mod encode;
mod error;
mod evaluate;
mod gradients;
mod history;
mod latents;
mod loss;
mod masks;
mod optimizer;
mod order;
pub mod page;
mod parts;
mod personalise;
mod pictures;
pub mod plot;
mod precision;
mod prodigy;
mod prompts;
mod recorded;
mod report;
mod run;
mod sampling;
mod scale;
mod stacks;
mod streams;
mod tensorboard;
mod tensors;
#[cfg(test)]
mod testing;
mod texts;
mod trainer;
mod training;
mod validation;
mod variants;

pub use backward::{Backward, Call, Checkpointing, ConditionGradient};
pub use batch::Batch;
pub use cache::EncodeCache;
pub use checkpoint::Checkpoint;
pub use config::{
    AugmentConfig, BucketConfig, CheckpointConfig, FlatRule, Loss, MaskConfig, MaskSource,
    ObjectiveConfig, OptimizerConfig, PRESETS, Preset, PriorConfig, SampleConfig, Schedule,
    TextEncoderConfig, TokensConfig, TrainConfig, ValidationConfig, preset, set,
};
pub use dataset::{Dataset, Example, said};
pub use encode::{EncodeConfig, Encoded};
pub use error::TrainError;
pub use evaluate::{Reference, Scores, drift, score};
pub use gradients::AdapterGradients;
pub use history::{History, Measured, Step};
pub use optimizer::{AdapterOptimizer, OptimizerState};
pub use personalise::{Event, Outcome, Personalisation, Place};
pub use pictures::Pictures;
pub use precision::Precision;
pub use prompts::Prompts;
pub use run::{RunFolder, write_file, write_png};
pub use sampling::{Scored, scored};
pub use scale::{LossScale, LossScaleConfig};
pub use stacks::{Part, Stacks, trainable};
pub use trainer::{Material, Trainer, TrainerState};
