//! The cast of the frozen denoiser.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{FloatDType, Tensor};
use soda_kernels::{laid_out, lasting};
use soda_models::unet::Unet;

use crate::config::Precision;

impl Precision {
    /// `unet`, not yet adapted, in this precision and as its device reads it quickest.
    pub fn of(self, unet: Unet) -> Unet {
        laid_out(unet.map(&mut Cast(self.dtype())))
    }
}

struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| lasting(value, |value| value.cast(self.0)))
    }
}
