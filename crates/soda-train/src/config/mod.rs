//! The settings of a run, as written in TOML and as typed on the command line.

mod augment;
mod buckets;
mod checkpointing;
mod edit;
mod loss_scale;
mod masks;
mod method;
mod objective;
mod optimizer;
mod precision;
mod preset;
mod text_encoder;
mod tokens;
mod validation;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use soda_adapters::{MethodConfig, Targets};
use toml::Table;

pub use augment::AugmentConfig;
pub use buckets::BucketConfig;
pub use checkpointing::GradientCheckpointing;
pub use edit::apply_setting;
pub(crate) use loss_scale::LARGEST_LOSS_SCALE;
pub use loss_scale::LossScaleConfig;
pub use masks::{MaskConfig, MaskSource};
pub use objective::{Loss, ObjectiveConfig, PriorConfig};
pub use optimizer::{FlatOptimizer, OptimizerConfig, Schedule};
pub use precision::Precision;
pub use preset::{PRESETS, Preset, preset};
pub use text_encoder::TextEncoderConfig;
pub use tokens::TokensConfig;
pub use validation::ValidationConfig;

use crate::error::TrainError;

/// Everything that decides a run's result, given the files it names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The base model: a diffusers directory.
    pub base: PathBuf,
    /// The pictures to learn from: a folder, see [`Dataset::read`](crate::Dataset::read).
    pub data: PathBuf,
    /// The caption of pictures that have none.
    #[serde(default)]
    pub prompt: Option<String>,
    /// Words that call the subject up, such as `sks mug`: what `[trigger]` in captions and prompts stands for.
    #[serde(default)]
    pub trigger: Option<String>,
    /// The evaluation models (`clip/` and `dino/`), without which no scores are given.
    #[serde(default)]
    pub judges: Option<PathBuf>,
    /// Decides data order, timesteps, noise and the samples' starting noise.
    #[serde(default)]
    pub seed: u64,
    /// Number of optimizer steps.
    pub steps: usize,
    /// Pictures at once.
    pub batch_size: usize,
    /// Batches a step: the gradient of `batch_size * accumulation` pictures in the memory of one batch.
    #[serde(default = "one")]
    pub accumulation: usize,
    /// Parts that a batch is computed in at once, each on threads of its own, but no more than it has
    /// samples; for a CPU. Runs with the same number give the same bits. The command line takes one a core, the
    /// library one.
    #[serde(default)]
    pub shards: Option<usize>,
    /// What is varied in the pictures and their captions.
    #[serde(default)]
    pub augment: AugmentConfig,
    /// Sizes for pictures that are not square; without them the centre square is learnt.
    #[serde(default)]
    pub buckets: Option<BucketConfig>,
    /// How much each part of a picture counts; without them all parts count alike.
    #[serde(default)]
    pub masks: Option<MaskConfig>,
    /// In which precision the frozen network computes; the adapter is in f32.
    #[serde(default)]
    pub precision: Precision,
    /// In which precision the text encoders and the autoencoder compute.
    #[serde(default)]
    pub encoder_precision: Precision,
    /// How the loss is scaled in f16.
    #[serde(default)]
    pub loss_scale: Option<LossScaleConfig>,
    /// What is computed again on the backward pass instead of kept: `none`, or `block` for everything inside the
    /// UNet's blocks.
    #[serde(default)]
    pub checkpointing: GradientCheckpointing,
    /// Which weights are adapted.
    #[serde(default)]
    pub targets: Targets,
    /// How they are adapted; in TOML a method's name is enough.
    #[serde(default, deserialize_with = "method::deserialize")]
    pub method: MethodConfig,
    /// Adapters of the text encoders beside it; without them captions are read once.
    #[serde(default)]
    pub text_encoder: Option<TextEncoderConfig>,
    /// New words whose vectors learn beside it.
    #[serde(default)]
    pub tokens: Option<TokensConfig>,
    /// What a step minimises.
    #[serde(default)]
    pub objective: ObjectiveConfig,
    /// Pictures of the class, so that not every mug becomes the mug.
    #[serde(default)]
    pub prior: Option<PriorConfig>,
    /// How the adapter moves.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// What a stopped run goes on from.
    #[serde(default)]
    pub checkpoints: CheckpointConfig,
    /// A loss whose values can be compared.
    #[serde(default)]
    pub validation: ValidationConfig,
    /// The pictures drawn before and after, and perhaps on the way.
    #[serde(default)]
    pub samples: SampleConfig,
    /// Whether everything measured goes to TensorBoard's event files as well, in the run's `tensorboard/`.
    #[serde(default)]
    pub tensorboard: bool,
}

fn one() -> usize {
    1
}

/// When checkpoints are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between two; 0 writes one only when the run is asked to stop.
    pub every: usize,
    /// How many are kept, newest first.
    pub keep: usize,
}

/// Sampling before, after and during the training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Prompts; when empty the data set's evaluation prompts, or else its captions.
    pub prompts: Vec<String>,
    /// Prompts that have nothing to do with what is learnt: how far their pictures move is the score `drift`.
    pub unrelated: Vec<String>,
    /// Training steps between two grids of them, `samples/<step>.png`; 0 draws none on the way.
    pub every: usize,
    /// DDIM steps.
    pub steps: usize,
    /// Classifier-free guidance.
    pub guidance: f64,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 100, keep: 2 }
    }
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { prompts: Vec::new(), unrelated: Vec::new(), every: 0, steps: 30, guidance: 5.0 }
    }
}

impl TrainConfig {
    /// The configuration as TOML, as stored with a run.
    ///
    /// # Errors
    /// A path that is no UTF-8.
    pub fn to_toml(&self) -> Result<String, TrainError> {
        toml::to_string(self)
            .map_err(|source| TrainError::WriteConfig { reason: source.to_string() })
    }

    /// Reads a configuration from TOML.
    ///
    /// # Errors
    /// A syntax error, an unknown or a missing field; the message says where, and which known field is
    /// nearest.
    pub fn from_toml(text: &str) -> Result<Self, TrainError> {
        toml::from_str(text).map_err(|source| edit::explain(source.to_string().trim_end()))
    }

    /// The same from a table, such as a preset with a few settings changed.
    ///
    /// # Errors
    /// An unknown or a missing field.
    pub fn from_table(table: Table) -> Result<Self, TrainError> {
        table.try_into().map_err(|source: toml::de::Error| edit::explain(source.message()))
    }

    /// The settings of the text encoders, where they learn.
    pub fn trained_text_encoder(&self) -> Option<&TextEncoderConfig> {
        self.text_encoder.as_ref().filter(|config| config.enabled)
    }

    /// The settings of new words, where there are some.
    pub fn trained_tokens(&self) -> Option<&TokensConfig> {
        self.tokens.as_ref().filter(|config| !config.words.is_empty())
    }

    /// Whether anything learns before the text states.
    pub fn trains_text_encoder(&self) -> bool {
        self.trained_text_encoder().is_some() || self.trained_tokens().is_some()
    }

    /// Refuses numbers that cannot train anything, and settings that exclude each other.
    ///
    /// # Errors
    /// The first field that is out of range, by name.
    pub fn check(&self) -> Result<(), TrainError> {
        let at_least_one = [
            ("batch_size", self.batch_size),
            ("accumulation", self.accumulation),
            ("shards", self.shards.unwrap_or(1)),
            ("checkpoints.keep", self.checkpoints.keep),
            ("samples.steps", self.samples.steps),
        ];
        if let Some((field, _)) = at_least_one.into_iter().find(|(_, value)| *value == 0) {
            return Err(TrainError::OutOfRange { field, range: "at least 1" });
        }
        if !self.samples.guidance.is_finite() {
            let field = "samples.guidance";
            return Err(TrainError::OutOfRange { field, range: "a finite number" });
        }
        if let Some(scale) = &self.loss_scale {
            scale.check()?;
            if self.precision != Precision::F16 {
                return Err(TrainError::Conflict(
                    "`loss_scale` belongs to `precision = \"f16\"`: set that, or remove `loss_scale`",
                ));
            }
        }
        self.augment.check()?;
        self.masks.iter().try_for_each(MaskConfig::check)?;
        self.validation.check()?;
        self.optimizer.check()?;
        self.objective.check()?;
        if let Some(text_encoder) = self.trained_text_encoder() {
            text_encoder.check(&self.optimizer)?;
        }
        if let Some(tokens) = &self.tokens {
            tokens.check(&self.optimizer)?;
        }
        if self.trains_text_encoder() && self.encoder_precision != Precision::F32 {
            return Err(TrainError::Conflict(
                "text encoders and new words learn in f32: set `encoder_precision = \"f32\"`, or remove \
                 `text_encoder` and `tokens`",
            ));
        }
        if let Some(prior) = &self.prior {
            prior.check()?;
            if self.objective.loss == Loss::Dco {
                return Err(TrainError::Conflict(
                    "`prior` and `objective.loss = \"dco\"` exclude each other: DCO already measures \
                     against the frozen network; remove one of them",
                ));
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

    fn table(settings: &[&str]) -> Table {
        let mut table = preset("toybox").unwrap();
        for setting in ["base=b", "data=d"].iter().chain(settings) {
            apply_setting(&mut table, setting).unwrap();
        }
        table
    }

    #[test]
    fn every_preset_is_usable_and_survives_the_file() {
        for preset in PRESETS {
            let mut table = super::preset(preset.name).unwrap();
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
    fn every_setting_can_be_set() {
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
    fn a_method_is_its_name_or_its_settings() {
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
    fn a_slip_is_named_with_what_was_meant() {
        let refused =
            |setting: &str| TrainConfig::from_table(table(&[setting])).unwrap_err().to_string();
        assert!(refused("stepz=3").contains("did you mean `steps`"));
        assert!(refused("optimizer.rotation_rl=1").contains("did you mean `rotation_lr`"));
        assert!(refused("optimizer.schedule=cosin").contains("did you mean `cosine`"));
        assert!(refused("masks.source=alpa").contains("did you mean `alpha`"));
        assert!(refused("buckets.max_sid=64").contains("did you mean `max_side`"));
        assert!(refused("steps=many").contains("expected usize"));
        let mut table = Table::new();
        assert!(apply_setting(&mut table, "steps").unwrap_err().to_string().contains("key=value"));
        assert!(
            apply_setting(&mut table, "method=lorra").unwrap_err().to_string().contains("lora")
        );
    }

    #[test]
    fn what_cannot_train_is_refused_by_name() {
        for (setting, field) in [
            ("batch_size=0", "batch_size"),
            ("accumulation=0", "accumulation"),
            ("optimizer.rotation_lr=nan", "optimizer.rotation_lr"),
            ("optimizer.ema_decay=1.5", "optimizer.ema_decay"),
            ("optimizer.flat=prodigy", "optimizer.spectrum_lr"),
            ("objective.dco_beta=0", "objective.dco_beta"),
            ("objective.timesteps=[5, 5]", "objective.timesteps"),
            ("objective.min_snr_gamma=-1", "objective.min_snr_gamma"),
            ("validation.held_out=1", "validation.held_out"),
            ("validation.timesteps=0", "validation.timesteps"),
            ("augment.crops=0", "augment.crops"),
            ("augment.tag_orders=0", "augment.tag_orders"),
            ("augment.caption_dropout=1.5", "augment.caption_dropout"),
            ("masks.unmasked_weight=1.5", "masks.unmasked_weight"),
            ("text_encoder.learning_rate=-1", "text_encoder.learning_rate"),
            ("text_encoder.stop_after=1.5", "text_encoder.stop_after"),
            ("loss_scale.initial=3", "loss_scale.initial"),
            ("loss_scale.growth_interval=10", "belongs to `precision = \"f16\"`"),
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
