//! The cast of the frozen denoiser to the precision of a run.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{FloatDType, Tensor};
use soda_kernels::{persistent, to_preferred_memory_format};

use crate::config::Precision;

impl Precision {
    /// Casts a denoiser without adapters to this precision, in the memory format that its device prefers.
    pub fn cast_denoiser<M: Module>(self, denoiser: M) -> M {
        to_preferred_memory_format(denoiser.map(&mut Cast(self.dtype())))
    }
}

struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| persistent(value, |value| value.cast(self.0)))
    }
}
