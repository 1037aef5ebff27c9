//! The options of how the linear weights of a network's blocks are stored.

use std::ffi::OsString;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use soda_kernels::{ActivationFormat, QuantFormat};
use soda_models::weights::WeightStorage;
use soda_train::TrainConfig;

use super::argv::{ToArgv, option};
use crate::usage::{UsageError, require};

#[derive(Clone, Debug, Default, PartialEq, Args)]
pub(crate) struct StorageArgs {
    /// Quantize the linear weights of the blocks of denoiser and text encoders; activations stay in --dtype
    #[arg(long, value_name = "FORMAT", value_parser = quant_format())]
    pub(super) base_precision: Option<QuantFormat>,
    /// Round activations and gradients to this format in products with these weights, for tensor cores of 8
    /// bits; with --base-precision fp8
    #[arg(long, value_name = "FORMAT", value_parser = activation_format(), requires = "base_precision")]
    activation_precision: Option<ActivationFormat>,
    /// Keep the linear weights of this many blocks of the denoiser in host memory, at most all; each is
    /// copied to the device while another block computes
    #[arg(long, value_name = "BLOCKS", default_value_t = 0)]
    offload: usize,
}

impl StorageArgs {
    /// The storage that a run's settings ask for.
    pub(super) fn of_run(config: &TrainConfig) -> Self {
        Self {
            base_precision: config.base_precision.map(QuantFormat::from),
            activation_precision: config.activation_precision.map(ActivationFormat::from),
            offload: config.offload,
        }
    }

    /// The storage of the denoiser, or a [`UsageError`] for formats that do not go together.
    pub(crate) fn denoiser(&self) -> Result<WeightStorage, UsageError> {
        let activations = self.activation_precision.unwrap_or_default();
        require(
            activations == ActivationFormat::Float || self.base_precision == Some(QuantFormat::Fp8),
            "--activation-precision fp8 belongs to --base-precision fp8",
        )?;
        let quantization = self.base_precision;
        Ok(WeightStorage { quantization, activations, offload: self.offload })
    }

    /// The formats that are given, with their names in the settings of a picture.
    pub(crate) fn labels(&self) -> impl Iterator<Item = (&'static str, String)> {
        let formats = [
            ("Base precision", self.base_precision.map(QuantFormat::name)),
            ("Activation precision", self.activation_precision.map(ActivationFormat::name)),
        ];
        formats.into_iter().filter_map(|(label, format)| Some((label, format?.to_owned())))
    }

    /// The name of the number format of weights.
    pub(crate) fn format_name(&self) -> &'static str {
        self.base_precision.map_or("none", QuantFormat::name)
    }

    /// The name of the number format of activations.
    pub(crate) fn activation_format_name(&self) -> &'static str {
        self.activation_precision.map_or("none", ActivationFormat::name)
    }
}

impl ToArgv for StorageArgs {
    fn append_to(&self, argv: &mut Vec<OsString>) {
        argv.extend(self.base_precision.map(|format| option("base-precision", format.name())));
        let activations = self.activation_precision.map(ActivationFormat::name);
        argv.extend(activations.map(|format| option("activation-precision", format)));
        argv.push(option("offload", self.offload.to_string()));
    }
}

/// Reads the name of a number format of linear weights.
fn quant_format() -> impl TypedValueParser<Value = QuantFormat> {
    let named = |name: String| QuantFormat::ALL.into_iter().find(|format| format.name() == name);
    PossibleValuesParser::new(QuantFormat::ALL.map(QuantFormat::name))
        .try_map(move |name| named(name).ok_or("no such format"))
}

/// Reads the name of a number format of activations.
fn activation_format() -> impl TypedValueParser<Value = ActivationFormat> {
    PossibleValuesParser::new([ActivationFormat::Fp8.name()]).map(|_| ActivationFormat::Fp8)
}
