//! The options of how a model that draws holds its weights.

use std::ffi::OsString;

use burn::tensor::FloatDType;
use clap::{Args, ValueEnum as _};
use soda_kernels::ActivationFormat;
use soda_models::pipeline::{LoadOptions, TextEncoderUse};
use soda_models::weights::{WeightPrecision, WeightStorage};
use soda_train::TrainConfig;

use super::argv::{ToArgv, option};
use super::storage::StorageArgs;
use crate::device::Precision;
use crate::usage::UsageError;

#[derive(Clone, Debug, Default, PartialEq, Args)]
pub(crate) struct WeightsArgs {
    /// Precision of the weights in memory
    #[arg(long, value_enum, default_value_t)]
    dtype: Precision,
    #[command(flatten)]
    storage: StorageArgs,
    /// Keep the linear weights of this many blocks of each text encoder in host memory, at most all
    #[arg(long, value_name = "BLOCKS", default_value_t = 0)]
    text_encoder_offload: usize,
}

impl WeightsArgs {
    /// The options that draw as a run's samples are drawn.
    pub(crate) fn of_run(config: &TrainConfig) -> Self {
        Self {
            dtype: config.precision.into(),
            storage: StorageArgs::of_run(config),
            text_encoder_offload: config.text_encoder_offload,
        }
    }

    /// The options to load a model that draws `prompts`. Its text encoders encode them, and leave memory
    /// before the denoiser is read.
    pub(crate) fn load_options(&self, prompts: Vec<String>) -> Result<LoadOptions, UsageError> {
        let (dtype, denoiser) = (FloatDType::from(self.dtype), self.storage.denoiser()?);
        let (offload, activations) = (self.text_encoder_offload, ActivationFormat::Float);
        Ok(LoadOptions {
            dtype,
            storage: WeightStorage { offload, activations, ..denoiser },
            denoiser: Some(WeightPrecision { storage: denoiser, ..dtype.into() }),
            text_encoder: TextEncoderUse::EncodeAndFree { prompts, hash: false },
            ..LoadOptions::default()
        })
    }

    /// The precisions that are not the default, as the settings of a picture name them.
    pub(crate) fn labels(&self) -> impl Iterator<Item = (&'static str, String)> {
        let dtype = (self.dtype != Precision::default()).then(|| ("Dtype", self.dtype_name()));
        dtype.into_iter().chain(self.storage.labels())
    }

    fn dtype_name(&self) -> String {
        self.dtype.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl ToArgv for WeightsArgs {
    fn append_to(&self, argv: &mut Vec<OsString>) {
        argv.push(option("dtype", self.dtype_name()));
        self.storage.append_to(argv);
        argv.push(option("text-encoder-offload", self.text_encoder_offload.to_string()));
    }
}
