//! The cast of the frozen denoiser to the precision of a run.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{FloatDType, Tensor};
use soda_kernels::{persistent, to_preferred_memory_format};
use soda_models::weights::quantize;

use crate::config::{Precision, TrainConfig};

impl Precision {
    /// Casts a denoiser without adapters to this precision, in the memory format that its device prefers.
    pub fn cast_denoiser<M: Module>(self, denoiser: M) -> M {
        to_preferred_memory_format(denoiser.map(&mut Cast(self.dtype())))
    }
}

/// A denoiser without adapters as a run keeps it: its linear weights quantized, if the settings say so,
/// and all others in the precision of the run.
///
/// Weights are quantized as they are in the file, before the cast.
pub(crate) fn frozen_denoiser<M: Module>(config: &TrainConfig, denoiser: M) -> M {
    let denoiser = match config.base_precision {
        Some(format) => quantize(denoiser, format.into()),
        None => denoiser,
    };
    config.precision.cast_denoiser(denoiser)
}

struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| persistent(value, |value| value.cast(self.0)))
    }
}
