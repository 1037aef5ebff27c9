//! The networks of a pipeline that a fine-tune may change, as one module.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, FloatDType, Tensor};
use soda_kernels::{MemoryFormat, has_vendor_blas};
use tracing::info_span;

use super::model::Pipeline;
use super::prompt::{TokenIds, states};
use crate::clip::{ClipTextModel, PromptEmbeds};
use crate::unet::Unet;

/// The memory format of a denoiser that draws.
const DENOISER_FORMAT: MemoryFormat = MemoryFormat::Preferred;

/// The memory format of a text encoder that draws. It has embeddings, whose rows are gathered.
const TEXT_FORMAT: MemoryFormat = MemoryFormat::Contiguous;

/// The denoiser and the text encoders, as one burn module.
///
/// The fields are named as the directories of diffusers' layout. A parameter's path is therefore a directory
/// and a key of its checkpoint, and adapter files contain these paths. The weights are shared with the
/// pipeline's.
#[derive(Module, Debug)]
pub struct Networks {
    /// The denoiser. The name of this field is the name of its directory.
    pub unet: Unet,
    /// The text encoder. `None` if prompts are encoded in advance.
    pub text_encoder: Option<ClipTextModel>,
    /// The second text encoder of SDXL.
    pub text_encoder_2: Option<ClipTextModel>,
}

impl Networks {
    /// Stores the weights of networks without adapters in the memory format in which they draw.
    ///
    /// Equal weights then give equal images: those of a run, of its adapter on the base, and of the merged
    /// model, each of which comes in a format of its own.
    pub fn in_drawing_format(self) -> Self {
        let Self { unet, text_encoder, text_encoder_2 } = self;
        let text = |encoder| TEXT_FORMAT.apply(encoder);
        Self {
            unet: DENOISER_FORMAT.apply(unet),
            text_encoder: text_encoder.map(text),
            text_encoder_2: text_encoder_2.map(text),
        }
    }

    /// Encodes token ids. `None` without a text encoder.
    pub fn encode_text(&self, ids: &TokenIds) -> Option<PromptEmbeds> {
        let encoder = self.text_encoder.as_ref()?;
        Some(states(encoder, self.text_encoder_2.as_ref(), ids, 0))
    }
}

/// Makes networks of a denoiser without text encoders.
impl From<Unet> for Networks {
    fn from(unet: Unet) -> Self {
        Self { unet, text_encoder: None, text_encoder_2: None }
    }
}

/// Casts all weights to bf16.
struct ToBf16;

impl ModuleMapper for ToBf16 {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|weight| weight.cast(FloatDType::BF16))
    }
}

impl Pipeline {
    /// The networks of the pipeline that a fine-tune may change.
    pub fn networks(&self) -> Networks {
        Networks {
            unet: self.denoiser.clone(),
            text_encoder: Some(self.text_encoder.clone()),
            text_encoder_2: self
                .second_text_encoder
                .as_ref()
                .map(|second| second.text_encoder.clone()),
        }
    }

    /// Stores the networks, which have no adapters, as [`Networks::in_drawing_format`] does.
    pub fn in_drawing_format(mut self) -> Self {
        let _span = info_span!("memory format").entered();
        // Each network is moved, so that the memory of one weight is free for the next.
        self.denoiser = DENOISER_FORMAT.apply(self.denoiser);
        self.text_encoder = TEXT_FORMAT.apply(self.text_encoder);
        if let Some(mut second) = self.second_text_encoder.take() {
            second.text_encoder = TEXT_FORMAT.apply(second.text_encoder);
            self.second_text_encoder = Some(second);
        }
        if self.draws_in_bf16() {
            self.vae = self.vae.map(&mut ToBf16);
        }
        self
    }

    /// Whether the autoencoder draws in bf16: beside networks in f16, in which its activations overflow, on a
    /// device that multiplies bf16 many times as fast as f32. ComfyUI does the same.
    fn draws_in_bf16(&self) -> bool {
        self.vae_config.force_upcast
            && self.denoiser_dtype() == DType::F16
            && self.device.supports_dtype(FloatDType::BF16)
            && has_vendor_blas(&self.vae.quant_conv.weight.val())
    }

    /// Replaces the pipeline's networks. Text encoders that `networks` lacks are kept.
    pub fn set_networks(&mut self, networks: Networks) {
        let Networks { unet, text_encoder, text_encoder_2 } = networks;
        self.denoiser = unet;
        if let Some(text_encoder) = text_encoder {
            self.text_encoder = text_encoder;
        }
        if let (Some(second), Some(text_encoder)) = (&mut self.second_text_encoder, text_encoder_2)
        {
            second.text_encoder = text_encoder;
        }
    }
}
