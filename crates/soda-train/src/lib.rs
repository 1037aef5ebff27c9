//! Fine-tunes a diffusion model on the images of a subject or a style.
//!
//! This crate combines the networks ([`soda_models`]), the adapters ([`soda_adapters`]) and the optimizers
//! ([`soda_optim`]). A [`TrainConfig`] is checked into a [`Personalisation`], whose run gives a
//! [`RunSummary`].
//!
//! | folder | contents |
//! |---|---|
//! | `error` | [`TrainError`] and its groups |
//! | `config` | settings: TOML, presets, single settings |
//! | `output` | files: the run's folder, charts, HTML pages, TensorBoard events, tensors |
//! | `divided` | work that the ranks divide, and its results on their way |
//! | `data` | images, captions, masks, their encodings, the cache, batches |
//! | `step` | one training step: loss, gradients, loss scale, trainer |
//! | `eval` | validation loss, sampled images, scores |
//! | `run` | a whole run: base model, training loop, checkpoints, report |
//!
//! A folder imports only folders above it in the table; no two modules import each other. The crate prints
//! nothing: a run reports its progress as [`Event`]s.
//!
//! # Examples
//!
//! Settings start from a preset:
//!
//! ```
//! use soda_train::{TrainConfig, apply_setting, preset};
//!
//! # fn main() -> Result<(), soda_train::TrainError> {
//! let mut settings = preset("toybox")?;
//! apply_setting(&mut settings, "base=models/sd15")?;
//! apply_setting(&mut settings, "data=pictures/mug")?;
//! apply_setting(&mut settings, "optimizer.rotation_lr=1e-3")?;
//! let config = TrainConfig::from_table(settings)?;
//! config.check()?;
//! assert_eq!(config.optimizer.rotation_lr, 1e-3);
//! # Ok(())
//! # }
//! ```
//!
//! A run writes to a new folder:
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::atomic::AtomicBool;
//!
//! use burn::tensor::Device;
//! use soda_train::{Personalisation, RunTarget, TrainConfig};
//!
//! # fn example(config: TrainConfig) -> Result<(), soda_train::TrainError> {
//! let run = Personalisation::new(config, &Device::default())?;
//! let target = RunTarget::New { root: Path::new("runs"), name: Some("mug") };
//! let summary = run.run(target, &AtomicBool::new(false), &mut |_event| ())?;
//! println!("{} in {:.0} s", summary.folder.display(), summary.seconds);
//! # Ok(())
//! # }
//! ```

mod config;
mod data;
mod divided;
mod error;
mod eval;
mod event;
mod network_hash;
mod output;
mod run;
mod step;
#[cfg(test)]
mod testing;

pub use config::{
    ActivationPrecision, AugmentConfig, BasePrecision, BestMetric, BucketConfig, CheckpointConfig,
    GradientCheckpointing, Loss, LossScaleConfig, MaskConfig, MaskSource, ObjectiveConfig,
    OptimizerConfig, PRESETS, Precision, Preset, PriorConfig, SampleConfig, Schedule,
    TextEncoderConfig, TokensConfig, TrainConfig, ValidationConfig, apply_setting, in_words,
    merge_settings, preset, toml_message,
};
pub use data::batch::Batch;
pub use data::cache::EncodeCache;
pub use data::caption_edit::write_caption;
pub use data::check::{
    CaptionTokenizers, CheckedFiles, CheckedImage, DataCheck, DataCheckConfig, Finding,
    FindingKind, Unchecked,
};
pub use data::dataset::{Dataset, expand_trigger, has_placeholder};
pub use data::encode::{EncodeConfig, EncodeOptions};
pub use data::encoded_dataset::EncodedDataset;
pub use data::folder::{DataFolder, Example, ListedImage, Skipped};
pub use data::masks::{MaskFiles, mask_file};
pub use data::prompts::Prompts;
pub use data::text_file::read_text;
pub use error::{CheckpointError, ConfigError, DataError, RunFolderError, TrainError};
pub use eval::dataset_images::DatasetImages;
pub use eval::scores::{RunScores, ScoreReference, Scores, drift, score};
pub use eval::snapshots::{StepScores, read_step_scores};
pub use event::Event;
pub use output::event_log::RunSpan;
pub use output::files::{write_file, write_png};
pub use output::run_folder::RunFolder;
pub use output::{page, plot};
pub use run::checkpoint::Checkpoint;
pub use run::fingerprint::RunFingerprint;
pub use run::history::{History, LOSS_WINDOW, StepScore, ValidationMetrics, running_mean};
pub use run::memory_plan::{MemoryMeter, MemoryPlan};
pub use run::memory_saving::MemorySaving;
pub use run::personalisation::{Personalisation, RunTarget};
pub use run::summary::RunSummary;
pub use step::adapted_networks::check_method;
pub use step::backward::{ConditionGradient, DenoiserInputs, LossAndGradients};
pub use step::loss_scale::LossScale;
pub use step::metrics::StepMetrics;
pub use step::ranks::Ranks;
pub use step::trainer::{StepData, Trainer, TrainerState};
