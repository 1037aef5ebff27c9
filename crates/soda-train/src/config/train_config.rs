//! All settings of a run: fields, TOML and checks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use soda_adapters::{MethodConfig, Targets};
use soda_models::pipeline::PromptEncoding;
use toml::Table;

use crate::config::augment::AugmentConfig;
use crate::config::buckets::BucketConfig;
use crate::config::checkpointing::GradientCheckpointing;
use crate::config::checkpoints::CheckpointConfig;
use crate::config::edit;
use crate::config::loss_scale::LossScaleConfig;
use crate::config::masks::MaskConfig;
use crate::config::method;
use crate::config::objective::{Loss, ObjectiveConfig, PriorConfig};
use crate::config::optimizer::OptimizerConfig;
use crate::config::precision::{self, ActivationPrecision, BasePrecision, Precision};
use crate::config::samples::SampleConfig;
use crate::config::seed;
use crate::config::text_encoder::TextEncoderConfig;
use crate::config::tokens::TokensConfig;
use crate::config::validation::ValidationConfig;
use crate::error::{ConfigError, TrainError};

/// The most samples of a step, which are listed in memory before they are drawn.
const MAX_STEP_SAMPLES: usize = 1_000_000;

/// The most steps of a run. They take decades.
const MAX_STEPS: usize = 1_000_000_000;

/// All settings of a run. Together with the files that they name, they determine its result.
///
/// ```
/// use soda_train::TrainConfig;
///
/// let text = "base = 'models/sd15'\ndata = 'photos'\nsteps = 500\nbatch_size = 1\nmethod = 'lora'";
/// let config = TrainConfig::from_toml(text)?;
/// config.check()?;
/// assert_eq!(config.optimizer.warmup_steps, 0);
/// # Ok::<(), soda_train::TrainError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The base model: a directory in the layout of diffusers.
    pub base: PathBuf,
    /// The folder of training images, see [`Dataset::read`](crate::Dataset::read).
    pub data: PathBuf,
    /// The caption of images that have none.
    #[serde(default)]
    pub prompt: Option<String>,
    /// The words that name the subject, such as `sks mug`. They replace `[trigger]` in captions and prompts.
    #[serde(default)]
    pub trigger: Option<String>,
    /// The folder of the evaluation models (`clip/` and `dino/`). Without it samples are not scored.
    #[serde(default)]
    pub judges: Option<PathBuf>,
    /// The seed of the data order, the timesteps, the noise and the initial noise of samples. In TOML it may
    /// be a string, as seeds from 2^63 up are.
    #[serde(default, with = "seed")]
    pub seed: u64,
    /// Number of optimizer steps.
    pub steps: usize,
    /// Images in a batch of one rank, which is one process.
    pub batch_size: usize,
    /// Gradient accumulation: batches of each rank in a step. A step uses `batch_size * accumulation * ranks`
    /// images in the memory of one batch for each rank.
    #[serde(default = "one")]
    pub accumulation: usize,
    /// The ranks whose batches make a step. The default is the number of processes that begin the run. With
    /// fewer processes each computes the batches of several ranks, one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<usize>,
    /// Number of shards of a batch that a CPU computes in parallel, each on its own threads. A batch has at
    /// most one shard per sample. The default is one; the command line uses one per core. Runs with the same
    /// number of shards give the same bits.
    #[serde(default)]
    pub shards: Option<usize>,
    /// Data augmentation of images and captions.
    #[serde(default)]
    pub augment: AugmentConfig,
    /// Aspect-ratio buckets. Without them all images are trained as squares.
    #[serde(default)]
    pub buckets: Option<BucketConfig>,
    /// Masked loss. Without it all parts of an image have the same weight.
    #[serde(default)]
    pub masks: Option<MaskConfig>,
    /// The precision of the UNet. The adapter is in f32 at any precision.
    #[serde(default)]
    pub precision: Precision,
    /// The precision of the text encoders and the autoencoder.
    #[serde(default)]
    pub encoder_precision: Precision,
    /// The number format of the frozen linear weights of denoiser and text encoders. Without it they are in
    /// `precision` and `encoder_precision`, as activations are without `activation_precision`.
    #[serde(default)]
    pub base_precision: Option<BasePrecision>,
    /// The number format of the denoiser's activations in products with those weights, with
    /// `base_precision = "fp8"` only. Without it they are in `precision`.
    #[serde(default)]
    pub activation_precision: Option<ActivationPrecision>,
    /// The number of the denoiser's blocks whose linear weights stay in host memory, at most all.
    #[serde(default)]
    pub offload: usize,
    /// As `offload`, for the blocks of each text encoder.
    #[serde(default)]
    pub text_encoder_offload: usize,
    /// Side of the training images and of the samples, in pixels: a multiple of the denoiser's patches. The
    /// default is that of the base model's training.
    #[serde(default)]
    pub resolution: Option<usize>,
    /// Indices of the text encoder's hidden states that the denoiser reads, for models with a language model;
    /// see [`PromptEncoding`]. The default is the model family's.
    #[serde(default)]
    pub text_encoder_out_layers: Option<Vec<i64>>,
    /// The most tokens of a prompt, for models with a language model. The default is the limit of the
    /// tokenizer, at most 512.
    #[serde(default)]
    pub max_sequence_length: Option<usize>,
    /// Loss scaling, with `precision = "f16"` only.
    #[serde(default)]
    pub loss_scale: Option<LossScaleConfig>,
    /// Gradient checkpointing: `none`, or `block` to recompute the activations inside the denoiser's blocks.
    #[serde(default)]
    pub checkpointing: GradientCheckpointing,
    /// The weights of the denoiser that are adapted.
    #[serde(default = "attention")]
    pub targets: Targets,
    /// The adapter method. In TOML its name is enough.
    #[serde(default, deserialize_with = "method::deserialize")]
    pub method: MethodConfig,
    /// Adapters of the text encoders. Without them captions are encoded once, before the first step.
    #[serde(default)]
    pub text_encoder: Option<TextEncoderConfig>,
    /// Textual inversion: new words whose embeddings are trained.
    #[serde(default)]
    pub tokens: Option<TokensConfig>,
    /// The loss and the noise.
    #[serde(default)]
    pub objective: ObjectiveConfig,
    /// Prior preservation with images of the class.
    #[serde(default)]
    pub prior: Option<PriorConfig>,
    /// Optimizers and learning rates.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// Checkpoints, from which a stopped run is resumed.
    #[serde(default)]
    pub checkpoints: CheckpointConfig,
    /// The validation loss.
    #[serde(default)]
    pub validation: ValidationConfig,
    /// Images that are sampled before, after and during training.
    #[serde(default)]
    pub samples: SampleConfig,
    /// Whether all measurements are written to TensorBoard's event files as well, in the run's
    /// `tensorboard/`.
    #[serde(default)]
    pub tensorboard: bool,
}

fn one() -> usize {
    1
}

/// The default targets: all attention projections of the denoiser.
fn attention() -> Targets {
    Targets(vec!["attention".to_owned()])
}

impl TrainConfig {
    /// Serializes the configuration as TOML, in the form of a run's `config.toml`.
    ///
    /// # Errors
    /// Returns an error if a path is not UTF-8.
    pub fn to_toml(&self) -> Result<String, TrainError> {
        toml::to_string(self)
            .map_err(|source| ConfigError::Write { reason: source.to_string() }.into())
    }

    /// Reads a configuration from TOML.
    ///
    /// # Errors
    /// Returns an error if the syntax is wrong or a field is unknown or missing. The message has the place
    /// and, for an unknown field, the nearest known one.
    pub fn from_toml(text: &str) -> Result<Self, TrainError> {
        toml::from_str(text).map_err(|source| edit::explain(&edit::toml_message(&source)).into())
    }

    /// Reads a configuration from a table, such as a [`preset`](crate::preset) with a few settings changed by
    /// [`apply_setting`](crate::apply_setting).
    ///
    /// # Errors
    /// Returns an error if a field is unknown, missing or of another type. The message has the setting.
    pub fn from_table(table: Table) -> Result<Self, TrainError> {
        table.try_into().map_err(|source| edit::explain(&edit::table_message(&source)).into())
    }

    /// How a language model encodes the prompts.
    pub fn prompt_encoding(&self) -> PromptEncoding {
        PromptEncoding {
            text_encoder_out_layers: self.text_encoder_out_layers.clone(),
            max_sequence_length: self.max_sequence_length,
        }
    }

    /// The settings of the text encoders if they are trained.
    pub fn trained_text_encoder(&self) -> Option<&TextEncoderConfig> {
        self.text_encoder.as_ref().filter(|config| config.enabled)
    }

    /// The settings of the new words if there are any.
    pub fn trained_tokens(&self) -> Option<&TokensConfig> {
        self.tokens.as_ref().filter(|config| !config.words.is_empty())
    }

    /// Whether the text encoders are part of each step, because their adapters or new words are trained.
    pub fn trains_text_encoder(&self) -> bool {
        self.trained_text_encoder().is_some() || self.trained_tokens().is_some()
    }

    /// Checks that all numbers are in their ranges and that no two settings exclude each other.
    ///
    /// # Errors
    /// Returns an error that names the first field out of range, or two settings that exclude each other.
    pub fn check(&self) -> Result<(), TrainError> {
        let at_least_one = [
            ("batch_size", self.batch_size),
            ("accumulation", self.accumulation),
            ("ranks", self.ranks.unwrap_or(1)),
            ("shards", self.shards.unwrap_or(1)),
            ("checkpoints.keep", self.checkpoints.keep),
            ("samples.steps", self.samples.steps),
        ];
        if let Some((field, _)) = at_least_one.into_iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::OutOfRange { field, range: "at least 1" }.into());
        }
        if self.checked_images_per_step().is_none_or(|images| images > MAX_STEP_SAMPLES) {
            let field = "batch_size";
            let range = "at most a million samples in a step, `accumulation` and `ranks` counted";
            return Err(ConfigError::OutOfRange { field, range }.into());
        }
        if self.steps > MAX_STEPS {
            return Err(ConfigError::OutOfRange { field: "steps", range: "at most 10^9" }.into());
        }
        self.samples.check()?;
        if let Some(scale) = &self.loss_scale {
            scale.check(self.precision)?;
        }
        precision::check_formats(self.base_precision, self.activation_precision)?;
        self.augment.check()?;
        self.masks.iter().try_for_each(MaskConfig::check)?;
        self.validation.check()?;
        let samples = self.samples.every;
        self.validation.check_choice(self.steps, samples, self.judges.is_some())?;
        self.optimizer.check()?;
        self.objective.check()?;
        if let Some(text_encoder) = self.trained_text_encoder() {
            text_encoder.check(&self.optimizer)?;
        }
        if let Some(tokens) = &self.tokens {
            tokens.check(&self.optimizer)?;
        }
        if self.trains_text_encoder() && self.encoder_precision != Precision::F32 {
            return Err(ConfigError::Conflict(
                "text encoders and new words learn in f32: set `encoder_precision = \"f32\"`, or remove \
                 `text_encoder` and `tokens`",
            )
            .into());
        }
        if let Some(prior) = &self.prior {
            prior.check()?;
            if self.objective.loss == Loss::Dco {
                return Err(ConfigError::Conflict(
                    "`prior` and `objective.loss = \"dco\"` exclude each other: DCO already measures \
                     against the frozen network; remove one of them",
                )
                .into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use soda_adapters::METHOD_PRESETS;

    use super::*;
    use crate::config::edit::apply_setting;
    use crate::config::optimizer::Schedule;
    use crate::config::preset::{PRESETS, preset};

    fn table(settings: &[&str]) -> Table {
        let mut table = preset("toybox").unwrap();
        for setting in ["base=b", "data=d"].iter().chain(settings) {
            apply_setting(&mut table, setting).unwrap();
        }
        table
    }

    #[test]
    fn every_preset_is_valid_and_survives_toml() {
        for preset in PRESETS {
            let mut table = crate::config::preset::preset(preset.name).unwrap();
            apply_setting(&mut table, "base=b").unwrap();
            apply_setting(&mut table, "data=d").unwrap();
            let config = TrainConfig::from_table(table).unwrap();
            config.check().unwrap();
            assert_eq!(TrainConfig::from_toml(&config.to_toml().unwrap()).unwrap(), config);
        }
        let message = preset("toybx").unwrap_err().to_string();
        assert!(message.contains("did you mean `toybox`"), "{message}");
    }

    #[test]
    fn settings_of_all_tables_can_be_applied() {
        let config = TrainConfig::from_table(table(&[
            "optimizer.rotation_lr=1e-3",
            "optimizer.schedule=constant",
            "objective.timesteps=[10, 20]",
            "objective.min_snr_gamma=5",
            "prior.prompt=a photo of a mug",
            "targets=[\"cross-attention\"]",
            "method=lora",
            "method.rank=3",
            "text_encoder.learning_rate=5e-5",
        ]))
        .unwrap();
        assert_eq!(config.optimizer.rotation_lr, 1e-3);
        assert_eq!(config.trained_text_encoder().unwrap().learning_rate, Some(5e-5));
        assert_eq!(config.optimizer.schedule, Schedule::Constant);
        assert_eq!(config.objective.timesteps, Some([10, 20]));
        assert_eq!(config.objective.min_snr_gamma, Some(5.0));
        assert_eq!(config.prior.unwrap().prompt, "a photo of a mug");
        assert_eq!(config.targets.0, ["cross-attention"]);
        let MethodConfig::Lora(lora) = &config.method else { panic!("{:?}", config.method) };
        assert_eq!(lora.rank, 3);
    }

    #[test]
    fn a_method_is_given_by_name_or_by_its_settings() {
        let read = |method: &str| {
            TrainConfig::from_toml(&format!(
                "base = 'a'\ndata = 'b'\nsteps = 1\nbatch_size = 1\nmethod = {method}"
            ))
        };
        for (name, make) in METHOD_PRESETS {
            assert_eq!(read(&format!("'{name}'")).unwrap().method, make());
        }
        let MethodConfig::Lora(lora) = read("{ name = 'lora', rank = 3 }").unwrap().method else {
            panic!("another method");
        };
        assert_eq!(lora.rank, 3);
        assert!(read("'lorra'").unwrap_err().to_string().contains("svdiff"));
        assert!(read("3").unwrap_err().to_string().contains("the name of a method"));
    }

    #[test]
    fn misspelt_names_get_a_suggestion() {
        let refused =
            |setting: &str| TrainConfig::from_table(table(&[setting])).unwrap_err().to_string();
        assert!(refused("stepz=3").contains("did you mean `steps`"));
        assert!(refused("optimizer.rotation_rl=1").contains("did you mean `rotation_lr`"));
        assert!(refused("optimizer.schedule=cosin").contains("did you mean `cosine`"));
        assert!(refused("masks.source=alpa").contains("did you mean `alpha`"));
        assert!(refused("buckets.max_sid=64").contains("did you mean `max_side`"));
        assert!(refused("steps=many").contains("`steps`: invalid type: string \"many\""));
        assert!(refused("samples.steps=[]").contains("`samples.steps`: invalid type: sequence"));
        assert!(refused("samples.stepz=1").contains("`samples`: unknown field `stepz`"));
        assert!(refused("method.rank=1.5").contains("`method`: "));
        assert!(refused("offload=-1").contains("`-1`, expected a whole number of at least 0"));
        let table = &mut Table::new();
        assert!(apply_setting(table, "steps").unwrap_err().to_string().contains("key=value"));
        assert!(apply_setting(table, "method=lorra").unwrap_err().to_string().contains("lora"));
    }

    #[test]
    fn invalid_settings_are_errors_that_name_the_field() {
        for (setting, field) in [
            ("batch_size=0", "batch_size"),
            ("accumulation=0", "accumulation"),
            ("accumulation=1000001", "`batch_size` must be at most a million samples"),
            ("ranks=0", "`ranks` must be at least 1"),
            ("ranks=1000001", "`batch_size` must be at most a million samples"),
            ("batch_size=9223372036854775807", "at most a million samples"),
            ("samples.steps=1001", "`samples.steps` must be at most 1000"),
            ("samples.tile_size=63", "`samples.tile_size` must be from 64 to 16384 pixels"),
            ("steps=1000000001", "`steps` must be at most"),
            ("optimizer.rotation_lr=nan", "optimizer.rotation_lr"),
            ("optimizer.ema_decay=1.5", "optimizer.ema_decay"),
            ("optimizer.flat=prodigy", "optimizer.spectrum_lr"),
            ("objective.dco_beta=0", "objective.dco_beta"),
            ("objective.dco_beta=500", "objective.loss = \"dco\""),
            ("objective.timesteps=[5, 5]", "objective.timesteps"),
            ("objective.min_snr_gamma=-1", "objective.min_snr_gamma"),
            ("validation.held_out=1", "validation.held_out"),
            ("validation.timesteps=0", "validation.timesteps"),
            ("validation.early_stopping_threshold=-1", "validation.early_stopping_threshold"),
            ("validation.early_stopping_threshold=0.1", "early_stopping_patience"),
            ("augment.keep_tags=3", "augment.tag_orders"),
            ("validation.early_stopping_patience=2", "validation.held_out"),
            ("validation.load_best_model_at_end=true", "validation.held_out"),
            ("validation.metric_for_best_model=dino", "validation.load_best_model_at_end"),
            ("augment.crops=0", "augment.crops"),
            ("augment.crops=9223372036854775807", "augment.crops"),
            ("augment.tag_orders=0", "augment.tag_orders"),
            ("augment.tag_orders=1001", "augment.tag_orders"),
            ("validation.timesteps=1001", "validation.timesteps"),
            ("augment.caption_dropout=1.5", "augment.caption_dropout"),
            ("masks.unmasked_weight=1.5", "masks.unmasked_weight"),
            ("text_encoder.learning_rate=-1", "text_encoder.learning_rate"),
            ("text_encoder.stop_after=1.5", "text_encoder.stop_after"),
            ("loss_scale.initial=3", "loss_scale.initial"),
            ("loss_scale.growth_interval=10", "belongs to `precision = \"f16\"`"),
            ("activation_precision=fp8", "belongs to `base_precision = \"fp8\"`"),
        ] {
            let error = TrainConfig::from_table(table(&[setting])).unwrap().check().unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
        }
        let both = table(&["objective.loss=dco", "prior.prompt=a mug"]);
        let error = TrainConfig::from_table(both).unwrap().check().unwrap_err();
        assert!(error.to_string().contains("exclude each other"), "{error}");
        for (settings, remedy) in [
            (&["encoder_precision=bf16", "text_encoder={}"][..], "`encoder_precision = \"f32\"`"),
            (
                &[
                    "optimizer.flat=prodigy",
                    "optimizer.spectrum_lr=1",
                    "text_encoder.stop_after=0.5",
                ],
                "remove `text_encoder.learning_rate`",
            ),
        ] {
            let error = TrainConfig::from_table(table(settings)).unwrap().check().unwrap_err();
            assert!(error.to_string().contains(remedy), "{error}");
            let off = [settings, &["text_encoder.enabled=false"]].concat();
            TrainConfig::from_table(table(&off)).unwrap().check().unwrap();
        }
    }
}
