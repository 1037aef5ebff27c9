//! Quantization of a pipeline whose weights are in floats, as after a merge.

use burn::module::{Module as _, ModuleMapper, Param};
use burn::tensor::{FloatDType, Tensor};
use soda_kernels::{QuantFormat, persistent};
use tracing::info_span;

use super::model::Pipeline;
use super::text_encoders::TextEncoders;
use crate::weights::quantize;

impl Pipeline {
    /// Quantizes the linear weights of text encoders and denoiser that are in floats, and casts the other
    /// weights of the denoiser to `dtype`. The networks have no adapters.
    #[must_use]
    pub fn quantized(mut self, format: QuantFormat, dtype: FloatDType) -> Self {
        let _span = info_span!("quantize").entered();
        self.denoiser = quantize(self.denoiser, format).map(&mut Cast(dtype));
        if let TextEncoders::Clip(clip) = self.text {
            let mut clip = *clip;
            clip.text_encoder = quantize(clip.text_encoder, format);
            if let Some(mut second) = clip.second.take() {
                second.text_encoder = quantize(second.text_encoder, format);
                clip.second = Some(second);
            }
            self.text = TextEncoders::Clip(Box::new(clip));
        }
        self
    }
}

/// Casts all weights.
struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|weight| persistent(weight, |weight| weight.cast(self.0)))
    }
}
