//! The settings of a run, as written in TOML and as typed on the command line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use soda_adapters::{MethodConfig, Targets};

use crate::error::TrainError;

/// Everything that decides a run's result, given the files it names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The base model: a diffusers directory.
    pub base: PathBuf,
    /// The pictures to learn from: a folder, see [`Dataset::read`](crate::Dataset::read).
    pub data: PathBuf,
    /// The evaluation models (`clip/` and `dino/`), without which no scores are given.
    #[serde(default)]
    pub judges: Option<PathBuf>,
    /// Decides data order, timesteps, noise and the samples' starting noise.
    #[serde(default)]
    pub seed: u64,
    /// Number of optimizer steps.
    pub steps: usize,
    /// Pictures per step.
    pub batch_size: usize,
    /// Which weights are adapted.
    #[serde(default)]
    pub targets: Targets,
    /// How they are adapted.
    #[serde(default)]
    pub method: MethodConfig,
    /// How the adapter moves.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// The pictures drawn before and after.
    #[serde(default)]
    pub samples: SampleConfig,
}

/// How the learning rates change over a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Half a cosine from the full rate down to zero: the last steps settle instead of wandering.
    #[default]
    Cosine,
    /// The full rate throughout.
    Constant,
}

impl Schedule {
    /// The factor on the learning rates at `step`, from 0, of `steps`.
    pub fn factor(self, step: usize, steps: usize) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Cosine => {
                0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps.max(1) as f64).cos())
            }
        }
    }
}

/// Learning rates and clipping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Learning rate of the rotations (momentum Stiefel Adam).
    pub rotation_lr: f64,
    /// Learning rate of the spectral shifts (AdamW).
    pub spectrum_lr: f64,
    /// Weight decay of the spectral shifts, towards the base.
    pub spectrum_weight_decay: f64,
    /// Largest norm of the gradient over all parameters.
    pub max_grad_norm: f64,
    /// How both rates change over the run.
    pub schedule: Schedule,
}

/// Sampling before and after the training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Prompts; when empty the data set's evaluation prompts, or else its captions.
    pub prompts: Vec<String>,
    /// DDIM steps.
    pub steps: usize,
    /// Classifier-free guidance.
    pub guidance: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            rotation_lr: 5e-3,
            spectrum_lr: 5e-3,
            spectrum_weight_decay: 1e-4,
            max_grad_norm: 1.0,
            schedule: Schedule::default(),
        }
    }
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { prompts: Vec::new(), steps: 30, guidance: 5.0 }
    }
}

impl TrainConfig {
    /// The recipe for the bundled 64-pixel model, on any folder of pictures.
    pub fn toybox(base: PathBuf, data: PathBuf) -> Self {
        Self {
            base,
            data,
            judges: None,
            seed: 0,
            steps: 300,
            batch_size: 5,
            targets: Targets::default(),
            method: MethodConfig::default(),
            optimizer: OptimizerConfig::default(),
            samples: SampleConfig::default(),
        }
    }

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
    /// A syntax error, an unknown or a missing field; the message says where.
    pub fn from_toml(text: &str) -> Result<Self, TrainError> {
        toml::from_str(text).map_err(|source| TrainError::ReadConfig { reason: source.to_string() })
    }

    /// Refuses numbers that cannot train anything.
    ///
    /// # Errors
    /// The first field that is out of range, by name.
    pub fn check(&self) -> Result<(), TrainError> {
        let refuse = |field, range| Err(TrainError::OutOfRange { field, range });
        let optimizer = &self.optimizer;
        let rate = |value: f64| value.is_finite() && value >= 0.0;
        match () {
            () if self.batch_size == 0 => refuse("batch_size", "at least 1"),
            () if self.samples.steps == 0 => refuse("samples.steps", "at least 1"),
            () if !self.samples.guidance.is_finite() => {
                refuse("samples.guidance", "a finite number")
            }
            () if !rate(optimizer.rotation_lr) => refuse("optimizer.rotation_lr", "0 or more"),
            () if !rate(optimizer.spectrum_lr) => refuse("optimizer.spectrum_lr", "0 or more"),
            () if !rate(optimizer.spectrum_weight_decay) => {
                refuse("optimizer.spectrum_weight_decay", "0 or more")
            }
            () if optimizer.max_grad_norm.is_nan() || optimizer.max_grad_norm <= 0.0 => {
                refuse("optimizer.max_grad_norm", "more than 0")
            }
            () => Ok(()),
        }
    }
}
