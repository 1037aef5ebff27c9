//! The options of how the linear weights of a network's blocks are stored.

use std::ffi::OsString;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use soda_kernels::QuantFormat;
use soda_models::weights::WeightStorage;
use soda_train::TrainConfig;

use super::argv::{ToArgv, option};

#[derive(Clone, Debug, Default, PartialEq, Args)]
pub(crate) struct StorageArgs {
    /// Quantize the linear weights of the blocks of denoiser and text encoders; products stay in --dtype
    #[arg(long, value_name = "FORMAT", value_parser = quant_format())]
    pub(super) base_precision: Option<QuantFormat>,
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
            offload: config.offload,
        }
    }

    /// The storage of the denoiser.
    pub(crate) fn denoiser(&self) -> WeightStorage {
        WeightStorage { quantization: self.base_precision, offload: self.offload }
    }

    /// The name of the number format.
    pub(crate) fn format_name(&self) -> &'static str {
        self.base_precision.map_or("none", QuantFormat::name)
    }
}

impl ToArgv for StorageArgs {
    fn append_to(&self, argv: &mut Vec<OsString>) {
        argv.extend(self.base_precision.map(|format| option("base-precision", format.name())));
        argv.push(option("offload", self.offload.to_string()));
    }
}

/// Reads the name of a number format of linear weights.
fn quant_format() -> impl TypedValueParser<Value = QuantFormat> {
    let named = |name: String| QuantFormat::ALL.into_iter().find(|format| format.name() == name);
    PossibleValuesParser::new(QuantFormat::ALL.map(QuantFormat::name))
        .try_map(move |name| named(name).ok_or("no such format"))
}
