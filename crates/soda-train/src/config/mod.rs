//! The settings of a run, in TOML and on the command line.

mod augment;
mod buckets;
mod checkpointing;
mod checkpoints;
mod edit;
mod loss_scale;
mod masks;
mod method;
mod objective;
mod optimizer;
mod precision;
mod preset;
mod samples;
mod seed;
mod step_size;
mod text_encoder;
mod tokens;
mod train_config;
mod validation;

pub use augment::AugmentConfig;
pub use buckets::BucketConfig;
pub use checkpointing::GradientCheckpointing;
pub use checkpoints::CheckpointConfig;
pub use edit::{apply_setting, in_words, merge_settings, toml_message};
pub(crate) use loss_scale::LARGEST_LOSS_SCALE;
pub use loss_scale::LossScaleConfig;
pub use masks::{MaskConfig, MaskSource};
pub use objective::{Loss, ObjectiveConfig, PriorConfig};
pub use optimizer::{OptimizerConfig, Schedule};
pub use precision::{ActivationPrecision, BasePrecision, Precision};
pub use preset::{PRESETS, Preset, preset};
pub use samples::SampleConfig;
pub use text_encoder::TextEncoderConfig;
pub use tokens::TokensConfig;
pub use train_config::TrainConfig;
pub use validation::{BestMetric, ValidationConfig};
