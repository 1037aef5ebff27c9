//! The networks of a pipeline that a fine-tune may change, as one module.

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
    Param,
};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use soda_kernels::{MemoryFormat, has_vendor_blas, persistent};
use tracing::info_span;

use super::denoiser::Denoiser;
use super::family::LoadOptions;
use super::model::Pipeline;
use super::prompt_states::PromptStates;
use super::text_encoders::{TextEncoders, TokenIds, states};
use crate::clip::{ClipTextModel, PromptEmbeds};
use crate::flux2::Flux2Transformer;
use crate::unet::Unet;
use crate::weights::{WeightPrecision, WeightStorage, store};
use crate::z_image::ZImageTransformer;

/// The memory format of a denoiser that draws.
const DENOISER_FORMAT: MemoryFormat = MemoryFormat::Preferred;

/// The memory format of a text encoder that draws. It has embeddings, whose rows are gathered.
const TEXT_FORMAT: MemoryFormat = MemoryFormat::Contiguous;

/// The denoiser and the text encoders, as one burn module.
///
/// A parameter's path is a directory of diffusers' layout and a key of its checkpoint, and adapter files
/// contain these paths. The weights are shared with the pipeline's.
#[derive(Debug, Clone)]
pub struct Networks {
    /// The denoiser. Its path is the name of its directory.
    pub denoiser: Denoiser,
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
        let Self { denoiser, text_encoder, text_encoder_2 } = self;
        let text = |encoder| TEXT_FORMAT.apply(encoder);
        Self {
            denoiser: DENOISER_FORMAT.apply(denoiser),
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
impl From<Denoiser> for Networks {
    fn from(denoiser: Denoiser) -> Self {
        Self { denoiser, text_encoder: None, text_encoder_2: None }
    }
}

/// Makes networks of a UNet without text encoders.
impl From<Unet> for Networks {
    fn from(unet: Unet) -> Self {
        Denoiser::from(unet).into()
    }
}

/// Makes networks of a transformer without text encoders.
impl From<Flux2Transformer> for Networks {
    fn from(transformer: Flux2Transformer) -> Self {
        Denoiser::from(transformer).into()
    }
}

/// Makes networks of a transformer without text encoders.
impl From<ZImageTransformer> for Networks {
    fn from(transformer: ZImageTransformer) -> Self {
        Denoiser::from(transformer).into()
    }
}

/// Casts all weights.
struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|weight| persistent(weight, |weight| weight.cast(self.0)))
    }
}

impl Pipeline {
    /// The networks of the pipeline that a fine-tune may change.
    pub fn networks(&self) -> Networks {
        let mut networks = Networks::from(self.denoiser.clone());
        if let Some(clip) = self.text.clip() {
            networks.text_encoder = Some(clip.text_encoder.clone());
            networks.text_encoder_2 =
                clip.second.as_ref().map(|second| second.text_encoder.clone());
        }
        networks
    }

    /// Stores the networks, which have no adapters, as [`Networks::in_drawing_format`] does.
    pub fn in_drawing_format(mut self) -> Self {
        let _span = info_span!("memory format").entered();
        // Each network is moved, so that the memory of one weight is free for the next.
        self.denoiser = DENOISER_FORMAT.apply(self.denoiser);
        self.text = match self.text {
            TextEncoders::Clip(clip) => {
                let mut clip = *clip;
                clip.text_encoder = TEXT_FORMAT.apply(clip.text_encoder);
                if let Some(mut second) = clip.second.take() {
                    second.text_encoder = TEXT_FORMAT.apply(second.text_encoder);
                    clip.second = Some(second);
                }
                TextEncoders::Clip(Box::new(clip))
            }
            TextEncoders::Qwen3(qwen3) => {
                let mut qwen3 = *qwen3;
                if let PromptStates::Encoder(text_encoder) = qwen3.states {
                    qwen3.states = PromptStates::Encoder(TEXT_FORMAT.apply(text_encoder));
                }
                TextEncoders::Qwen3(Box::new(qwen3))
            }
        };
        if self.draws_in_bf16() {
            return self.with_decoder_in(FloatDType::BF16);
        }
        self
    }

    /// Casts the weights with which latents are decoded. Images are encoded as before.
    #[must_use]
    pub fn with_decoder_in(mut self, dtype: FloatDType) -> Self {
        let mut cast = Cast(dtype);
        self.vae.decoder = self.vae.decoder.map(&mut cast);
        self.vae.post_quant_conv = self.vae.post_quant_conv.map(|conv| conv.map(&mut cast));
        self
    }

    /// Stores the linear weights of text encoders and denoiser that are in floats as `options` say, and casts
    /// all other weights. The networks have no adapters.
    #[must_use]
    pub fn stored(mut self, options: &LoadOptions) -> Self {
        let WeightPrecision { dtype, storage, .. } = options.denoiser_precision();
        let is_plain = [storage, options.storage] == [WeightStorage::default(); 2];
        if is_plain && [dtype, options.dtype] == [FloatDType::F32; 2] {
            return self;
        }
        let _span = info_span!("store").entered();
        self.denoiser = store(self.denoiser, storage, dtype).map(&mut Cast(dtype));
        if let TextEncoders::Clip(clip) = self.text {
            let mut clip = *clip;
            let stored = |encoder: ClipTextModel| {
                store(encoder, options.storage, options.dtype).map(&mut Cast(options.dtype))
            };
            clip.text_encoder = stored(clip.text_encoder);
            if let Some(mut second) = clip.second.take() {
                second.text_encoder = stored(second.text_encoder);
                clip.second = Some(second);
            }
            self.text = TextEncoders::Clip(Box::new(clip));
        }
        self
    }

    /// Whether an autoencoder in f32 decodes in bf16: beside a denoiser in half precision, on a device that
    /// multiplies bf16 many times as fast as f32. It may overflow in f16. ComfyUI does the same.
    fn draws_in_bf16(&self) -> bool {
        self.vae.decoder_dtype() == DType::F32
            && matches!(self.denoiser.dtype(), DType::F16 | DType::BF16)
            && self.device.supports_dtype(FloatDType::BF16)
            && has_vendor_blas(&self.vae.any_weight())
    }

    /// Replaces the pipeline's networks. Text encoders that `networks` lacks are kept.
    pub fn set_networks(&mut self, networks: Networks) {
        let Networks { denoiser, text_encoder, text_encoder_2 } = networks;
        self.denoiser = denoiser;
        let Some(clip) = self.text.clip_mut() else { return };
        if let Some(text_encoder) = text_encoder {
            clip.text_encoder = text_encoder;
        }
        if let (Some(second), Some(text_encoder)) = (&mut clip.second, text_encoder_2) {
            second.text_encoder = text_encoder;
        }
    }
}

/// The kind of container that visitors are told.
const KIND: &str = "Struct:Networks";

/// Written by hand, since the denoiser's path depends on what it is.
impl Module for Networks {
    fn collect_devices(&self, devices: Devices) -> Devices {
        let devices = self.denoiser.collect_devices(devices);
        self.text_encoder_2.collect_devices(self.text_encoder.collect_devices(devices))
    }

    fn fork(self, device: &Device) -> Self {
        Self {
            denoiser: self.denoiser.fork(device),
            text_encoder: self.text_encoder.fork(device),
            text_encoder_2: self.text_encoder_2.fork(device),
        }
    }

    fn to_device(self, device: &Device) -> Self {
        Self {
            denoiser: self.denoiser.to_device(device),
            text_encoder: self.text_encoder.to_device(device),
            text_encoder_2: self.text_encoder_2.to_device(device),
        }
    }

    fn train(self) -> Self {
        Self {
            denoiser: self.denoiser.train(),
            text_encoder: self.text_encoder.train(),
            text_encoder_2: self.text_encoder_2.train(),
        }
    }

    fn valid(&self) -> Self {
        Self {
            denoiser: self.denoiser.valid(),
            text_encoder: self.text_encoder.valid(),
            text_encoder_2: self.text_encoder_2.valid(),
        }
    }

    fn materialize(self) -> Self {
        Self {
            denoiser: self.denoiser.materialize(),
            text_encoder: self.text_encoder.materialize(),
            text_encoder_2: self.text_encoder_2.materialize(),
        }
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        let Self { denoiser, text_encoder, text_encoder_2 } = self;
        visit_at(denoiser.folder(), denoiser, visitor);
        visit_at("text_encoder", text_encoder, visitor);
        visit_at("text_encoder_2", text_encoder_2, visitor);
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        Self {
            denoiser: map_at(self.denoiser.folder(), self.denoiser, mapper),
            text_encoder: map_at("text_encoder", self.text_encoder, mapper),
            text_encoder_2: map_at("text_encoder_2", self.text_encoder_2, mapper),
        }
    }
}

fn visit_at<N: Module, V: ModuleVisitor>(name: &str, network: &N, visitor: &mut V) {
    visitor.enter_module(name, KIND);
    network.visit(visitor);
    visitor.exit_module(name, KIND);
}

fn map_at<N: Module, M: ModuleMapper>(name: &str, network: N, mapper: &mut M) -> N {
    mapper.enter_module(name, KIND);
    let network = network.map(mapper);
    mapper.exit_module(name, KIND);
    network
}

impl ModuleDisplayDefault for Networks {
    fn content(&self, content: Content) -> Option<Content> {
        content
            .add(self.denoiser.folder(), &self.denoiser)
            .add("text_encoder", &self.text_encoder)
            .add("text_encoder_2", &self.text_encoder_2)
            .optional()
    }

    fn num_params(&self) -> usize {
        Module::num_params(self)
    }
}

impl ModuleDisplay for Networks {}

impl std::fmt::Display for Networks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.format(burn::module::DisplaySettings::default()))
    }
}
