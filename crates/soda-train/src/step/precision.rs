//! The frozen denoiser as a run keeps it: its precision, and how its linear weights are stored.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{FloatDType, Tensor};
use soda_kernels::{ActivationFormat, QuantFormat, persistent, to_preferred_memory_format};
use soda_models::weights::{WeightStorage, store};

use crate::config::{Precision, TrainConfig};

impl Precision {
    /// Casts a denoiser without adapters to this precision, in the memory format that its device prefers.
    pub fn cast_denoiser<M: Module>(self, denoiser: M) -> M {
        to_preferred_memory_format(denoiser.map(&mut Cast(self.dtype())))
    }
}

/// A denoiser without adapters as a run keeps it: its linear weights stored as the settings say, and all
/// others in the precision of the run.
///
/// Weights are quantized as they are in the file, before the cast.
pub(crate) fn frozen_denoiser<M: Module>(config: &TrainConfig, denoiser: M) -> M {
    let precision = config.precision;
    precision.cast_denoiser(store(denoiser, config.denoiser_storage(), precision.dtype()))
}

impl TrainConfig {
    /// How the linear weights of the denoiser's blocks are stored.
    pub(crate) fn denoiser_storage(&self) -> WeightStorage {
        let quantization = self.base_precision.map(QuantFormat::from);
        let activations = self.activation_precision.map(ActivationFormat::from);
        let activations = activations.unwrap_or_default();
        WeightStorage { quantization, activations, offload: self.offload }
    }

    /// How those of the text encoders' blocks are stored. Adapters of text encoders are made from the weights
    /// of the file, which are loaded as they are then.
    pub(crate) fn text_encoder_storage(&self) -> WeightStorage {
        match self.trains_text_encoder() {
            true => WeightStorage::default(),
            false => WeightStorage {
                offload: self.text_encoder_offload,
                activations: ActivationFormat::Float,
                ..self.denoiser_storage()
            },
        }
    }
}

struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| persistent(value, |value| value.cast(self.0)))
    }
}
