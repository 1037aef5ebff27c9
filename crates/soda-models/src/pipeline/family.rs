//! What differs between model families: text encoders and denoiser, with their files and how they are loaded.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, FloatDType};
use serde_json::{Map, Value};

use super::denoiser::{Denoiser, DenoiserConfig};
use super::load_warning::LoadWarning;
use super::prompt_encoding::PromptEncoding;
use super::prompt_states::TextEncoderUse;
use super::text_encoders::TextEncoders;
use soda_kernels::{ActivationFormat, QuantFormat};

use crate::config;
use crate::error::{ConfigError, ModelError};
use crate::scheduler::{SamplerKind, SchedulerConfig};
use crate::vae::VaeConfig;
use crate::weights::{Checkpoint, WeightPrecision, WeightStorage};

/// The names of weight files, without variant and extension.
pub(super) const TRANSFORMERS: &str = "model";
pub(super) const DIFFUSERS: &str = "diffusion_pytorch_model";

/// How a model is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// The dtype of the weights in memory. An autoencoder that overflows in f16 stays in f32.
    pub dtype: FloatDType,
    /// The variant of the weight files, such as `fp16`. Parts without it are read from their plain files.
    /// `None` for the plain files, or else for the only variant there is.
    pub variant: Option<String>,
    /// How the linear weights of the blocks of text encoders are stored, and those of the denoiser unless
    /// `denoiser` says otherwise.
    pub storage: WeightStorage,
    /// The precision of the denoiser's weights, if it differs.
    pub denoiser: Option<WeightPrecision>,
    /// Side of the images that are drawn and trained unless a request has another size, in pixels: a multiple
    /// of [`Pipeline::pixels_per_token`](super::Pipeline::pixels_per_token). `None` for that of the model's
    /// training.
    pub resolution: Option<usize>,
    /// How a language model encodes prompts. Refused for models with CLIP text encoders, if it is set.
    pub prompt_encoding: PromptEncoding,
    /// How long a language model stays in memory. CLIP text encoders stay in any case.
    pub text_encoder: TextEncoderUse,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            dtype: FloatDType::F32,
            variant: None,
            storage: WeightStorage::default(),
            denoiser: None,
            resolution: None,
            prompt_encoding: PromptEncoding::default(),
            text_encoder: TextEncoderUse::Keep,
        }
    }
}

impl LoadOptions {
    /// The precision of text encoders.
    pub(super) fn text_precision(&self) -> WeightPrecision {
        WeightPrecision { storage: self.storage, ..WeightPrecision::from(self.dtype) }
    }

    /// The precision of the denoiser's weights.
    pub fn denoiser_precision(&self) -> WeightPrecision {
        self.denoiser.clone().unwrap_or_else(|| self.text_precision())
    }

    /// Refuses dtypes that the device does not compute in.
    pub(super) fn check(&self, device: &Device) -> Result<(), ModelError> {
        for dtype in [self.dtype, self.denoiser_precision().dtype] {
            if !device.supports_dtype(dtype) {
                return Err(ModelError::UnsupportedPrecision { dtype });
            }
        }
        let WeightStorage { activations, quantization, .. } = self.denoiser_precision().storage;
        if activations == ActivationFormat::Fp8 && quantization != Some(QuantFormat::Fp8) {
            let (field, value) = ("activations", "fp8".to_owned());
            let expected = "weights in fp8 beside it".to_owned();
            return Err(ModelError::InvalidRequest { field, value, expected });
        }
        Ok(())
    }
}

/// A model family: its parts beside autoencoder and scheduler, by their configs and tokenizers.
pub(crate) trait Family: Sized {
    /// The open weight files of its networks, with the networks' keys.
    type Weights;

    /// Reads everything but the weights. `index` is the directory's `model_index.json`.
    fn read(
        dir: &Path,
        index: &Map<String, Value>,
        encoding: &PromptEncoding,
    ) -> Result<Self, ModelError>;

    /// Refuses parts that do not fit together.
    fn check(
        &self,
        dir: &Path,
        vae: &VaeConfig,
        scheduler: &SchedulerConfig,
    ) -> Result<(), ModelError>;

    /// Whether the model is distilled to draw in few steps and without guidance, as far as its files say it.
    fn is_distilled(&self, _scheduler: &SchedulerConfig) -> bool {
        false
    }

    /// Opens the weight files.
    fn open(&self, found: &mut Found<'_>) -> Result<Self::Weights, ModelError>;

    /// Loads the networks.
    fn load(
        self,
        weights: Self::Weights,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<LoadedNetworks, ModelError>;
}

/// The networks that differ between the families.
pub(crate) struct LoadedNetworks {
    pub(crate) text: TextEncoders,
    pub(crate) denoiser: Denoiser,
    pub(crate) denoiser_config: DenoiserConfig,
}

/// The configs and tokenizers of a model, checked to fit together.
#[derive(Debug)]
pub(crate) struct Configs<F> {
    pub(crate) family: F,
    pub(crate) vae: VaeConfig,
    pub(crate) scheduler: SchedulerConfig,
}

impl<F: Family> Configs<F> {
    /// Reads everything but the weights.
    pub(crate) fn read(
        dir: &Path,
        index: &Map<String, Value>,
        encoding: &PromptEncoding,
    ) -> Result<Self, ModelError> {
        let configs = Self {
            family: F::read(dir, index, encoding)?,
            vae: config::read(&dir.join("vae/config.json"))?,
            scheduler: config::read(&dir.join("scheduler/scheduler_config.json"))?,
        };
        configs.family.check(dir, &configs.vae, &configs.scheduler)?;
        Ok(configs)
    }
}

/// The weight files of a directory that are opened, by the rule of diffusers: a part without the variant is
/// read from its plain files.
pub(crate) struct Found<'a> {
    dir: &'a Path,
    variant: Option<&'a str>,
    /// The parts with the variant, and those without it.
    varied: usize,
    plain: Vec<String>,
    warnings: Vec<LoadWarning>,
}

impl<'a> Found<'a> {
    pub(super) fn new(dir: &'a Path, variant: Option<&'a str>) -> Self {
        Self { dir, variant, varied: 0, plain: Vec::new(), warnings: Vec::new() }
    }

    /// Opens the weights of the denoiser in the folder `part`.
    pub(crate) fn open_denoiser(&mut self, part: &str) -> Result<Checkpoint, ModelError> {
        self.open(part, DIFFUSERS)
    }

    /// Opens the weights in the folder `part`.
    pub(crate) fn open(&mut self, part: &str, stem: &str) -> Result<Checkpoint, ModelError> {
        let dir = self.dir.join(part);
        let variant = self.variant.filter(|name| Checkpoint::exists(&dir, stem, Some(name)));
        match (self.variant, variant) {
            (Some(_), Some(_)) => self.varied += 1,
            // The request is not met, and the error names the file that it asked for.
            (Some(_), None) if !Checkpoint::exists(&dir, stem, None) => {
                return Checkpoint::find(&dir, stem, self.variant);
            }
            (Some(_), None) => self.plain.push(part.to_string()),
            (None, _) => {}
        }
        let weights = Checkpoint::find(&dir, stem, variant)?;
        if self.variant.is_none() && !Checkpoint::exists(&dir, stem, None) {
            self.warnings.push(LoadWarning::OnlyVariant { file: weights.path.clone() });
        }
        Ok(weights)
    }

    /// The warnings of all parts.
    pub(super) fn warnings(mut self) -> Result<Vec<LoadWarning>, ModelError> {
        let Some(variant) = self.variant.map(str::to_string) else { return Ok(self.warnings) };
        if self.varied == 0 {
            let expected = format!("no part of {} has it; leave it out", self.dir.display());
            return Err(ModelError::InvalidRequest { field: "variant", value: variant, expected });
        }
        if !self.plain.is_empty() {
            self.warnings.push(LoadWarning::MixedVariants { variant, plain: self.plain });
        }
        Ok(self.warnings)
    }
}

/// Refuses a scheduler of another process than flow matching.
pub(super) fn check_flow(dir: &Path, scheduler: &SchedulerConfig) -> Result<(), ModelError> {
    if scheduler.is_flow() {
        return Ok(());
    }
    Err(unsupported(
        dir.join("scheduler/scheduler_config.json"),
        "_class_name",
        scheduler.class.class_name(),
        SamplerKind::FlowMatchEuler.class_name(),
    ))
}

/// The mark `is_distilled` of a `model_index.json`, which is in `dir`.
pub(super) fn distilled_mark(
    dir: &Path,
    index: &Map<String, Value>,
) -> Result<Option<bool>, ModelError> {
    match index.get("is_distilled") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(is_distilled)) => Ok(Some(*is_distilled)),
        Some(other) => Err(unsupported(
            dir.join("model_index.json"),
            "is_distilled",
            other.to_string(),
            "true or false".to_owned(),
        )),
    }
}

/// Refuses a field of the `config.json` in the folder `part` of the model `dir`.
pub(super) fn refuse_config(
    dir: &Path,
    part: &str,
    field: &str,
    value: impl ToString,
    supported: String,
) -> Result<(), ModelError> {
    Err(unsupported(dir.join(part).join("config.json"), field, value.to_string(), supported))
}

/// The error of a field that contradicts another part of the model, or that no model of the family has.
pub(super) fn unsupported(
    path: PathBuf,
    field: &str,
    value: String,
    supported: String,
) -> ModelError {
    ConfigError::UnsupportedField { path, field: field.to_owned(), value, supported }.into()
}
