//! Networks with random weights and random batches, for `soda bench`.
//!
//! The speed of a training step does not depend on the values of the weights.

use anyhow::{Context as _, Result};
use burn::module::{Module as _, ModuleMapper, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use clap::ValueEnum;
use serde_json::json;
use soda_kernels::{linear_deferred, persistent};
use soda_models::condition::{AddedCondition, Condition};
use soda_models::flux2::Flux2Config;
use soda_models::pipeline::{Denoiser, DenoiserConfig};
use soda_models::unet::UnetConfig;
use soda_models::z_image::ZImageConfig;
use soda_optim::{AdapterGradients, BatchedParams};
use soda_train::{DenoiserInputs, GradientCheckpointing};

/// The value of `--arch`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Architecture {
    /// The bundled network
    #[default]
    Toybox,
    /// Stable Diffusion 1.5
    Sd15,
    /// Stable Diffusion XL
    Sdxl,
    /// The bundled transformer
    Toyflux,
    /// FLUX.2 klein 4B
    #[value(name = "flux2-klein-4b")]
    Flux2Klein4b,
    /// FLUX.2 klein 9B
    #[value(name = "flux2-klein-9b")]
    Flux2Klein9b,
    /// Z-Image
    ZImage,
}

impl Architecture {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Toybox => "toybox",
            Self::Sd15 => "sd15",
            Self::Sdxl => "sdxl",
            Self::Toyflux => "toyflux",
            Self::Flux2Klein4b => "flux2-klein-4b",
            Self::Flux2Klein9b => "flux2-klein-9b",
            Self::ZImage => "z-image",
        }
    }

    /// The side of the latents in the network's training.
    pub(crate) fn latents(self) -> usize {
        match self {
            Self::Toybox => 16,
            Self::Toyflux => 8,
            Self::Sd15 | Self::Flux2Klein4b | Self::Flux2Klein9b => 64,
            Self::Sdxl | Self::ZImage => 128,
        }
    }

    /// The tokens of a prompt that the network sees. Those of Z-Image are a long caption's.
    pub(crate) fn tokens(self) -> usize {
        match self {
            Self::Toybox | Self::Sd15 | Self::Sdxl => 77,
            Self::Toyflux => 64,
            Self::Flux2Klein4b | Self::Flux2Klein9b => 512,
            Self::ZImage => 256,
        }
    }

    pub(crate) fn config(self) -> Result<DenoiserConfig> {
        let toybox = json!({
            "block_out_channels": [64, 128, 160],
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 16,
            "cross_attention_dim": 160,
            "attention_head_dim": 4,
        });
        let toyflux = json!({
            "in_channels": 32,
            "num_layers": 2,
            "num_single_layers": 6,
            "attention_head_dim": 32,
            "num_attention_heads": 6,
            "joint_attention_dim": 192,
            "timestep_guidance_channels": 128,
            "axes_dims_rope": [8, 8, 8, 8],
            "guidance_embeds": false,
        });
        let bundled = "the bundled network's configuration";
        Ok(match self {
            Self::Toybox => DenoiserConfig::Unet(serde_json::from_value(toybox).context(bundled)?),
            Self::Sd15 => DenoiserConfig::Unet(UnetConfig::sd15()),
            Self::Sdxl => DenoiserConfig::Unet(UnetConfig::sdxl()),
            Self::Toyflux => {
                DenoiserConfig::Flux2(serde_json::from_value(toyflux).context(bundled)?)
            }
            Self::Flux2Klein4b => DenoiserConfig::Flux2(Flux2Config::klein_4b()),
            Self::Flux2Klein9b => DenoiserConfig::Flux2(Flux2Config::klein_9b()),
            Self::ZImage => DenoiserConfig::ZImage(ZImageConfig::default()),
        })
    }
}

/// The numbers that a step on a layer holds at least: its weight, input and output, with their gradients.
pub(crate) fn layer_numbers([inputs, outputs]: [usize; 2], rows: usize) -> usize {
    let rows = rows.saturating_mul(inputs + outputs);
    inputs.saturating_mul(outputs).saturating_add(rows).saturating_mul(2)
}

/// The numbers that a step on a batch holds at least: the first activations of the network, with their
/// gradients.
pub(crate) fn batch_numbers(config: &DenoiserConfig, batch: usize, latents: usize) -> usize {
    let channels = match config {
        DenoiserConfig::Unet(config) => config.block_out_channels.first().copied().unwrap_or(1),
        DenoiserConfig::Flux2(config) => config.width(),
        DenoiserConfig::ZImage(config) => config.dim / config.patch_channels().max(1),
    };
    let pixels = latents.saturating_mul(latents).saturating_mul(batch);
    pixels.saturating_mul(channels).saturating_mul(2)
}

/// Draws the weights of a network at random in one dtype. The network never exists in another dtype.
pub(crate) struct RandomWeights(pub(crate) FloatDType);

impl ModuleMapper for RandomWeights {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let dtype = self.0;
        if D == 1 {
            let cast = |value: Tensor<D>| persistent(value, |value| value.cast(dtype));
            return param.map(|value| cast(value).set_require_grad(false));
        }
        let (id, device, shape) = (param.id, param.lazy_device(), param.lazy_shape());
        // Linear weights are `[in, out]`, convolution weights `[out, in, kh, kw]`.
        let inputs = if D == 2 { shape[0] } else { shape[1..].iter().product() };
        let bound = (inputs.max(1) as f64).powf(-0.5);
        let draw = |()| {
            let distribution = Distribution::Uniform(-bound, bound);
            Tensor::random(shape.clone(), distribution, (&device, DType::from(dtype)))
        };
        let value = device.memory_persistent_allocations((), draw);
        Param::initialized(id, value.set_require_grad(false))
    }
}

/// What `soda bench` trains: a network with adapters, and its batch.
pub(crate) trait Workload: Clone + 'static {
    /// The gradients by the adapters' parameters. Calls `on_forward` between the forward and the backward
    /// pass.
    fn gradients(&self, parameters: &BatchedParams, on_forward: impl FnOnce()) -> BatchedParams;
}

/// A denoiser.
#[derive(Clone)]
pub(crate) struct DenoiserStep {
    pub(crate) denoiser: Denoiser,
    pub(crate) batch: RandomBatch,
    pub(crate) checkpointing: GradientCheckpointing,
}

impl Workload for DenoiserStep {
    fn gradients(&self, parameters: &BatchedParams, on_forward: impl FnOnce()) -> BatchedParams {
        self.batch.gradients(&self.denoiser, parameters, self.checkpointing, on_forward)
    }
}

/// One linear layer without a bias, inside a network: its input has a gradient too.
#[derive(Clone)]
pub(crate) struct LayerStep {
    layer: Linear,
    /// `[rows, in]`
    rows: Tensor<2>,
    /// The gradient by the output, `[rows, out]`.
    gradient: Tensor<2>,
}

impl LayerStep {
    /// `layer` with adapters, and `rows` random rows in the dtype of its weight.
    pub(crate) fn new(layer: Linear, rows: usize, dtype: FloatDType, device: &Device) -> Self {
        let [inputs, outputs] = layer.weight.lazy_shape().dims();
        Self {
            layer,
            rows: normal([rows, inputs], dtype, device),
            gradient: normal([rows, outputs], dtype, device),
        }
    }
}

impl Workload for LayerStep {
    fn gradients(&self, parameters: &BatchedParams, on_forward: impl FnOnce()) -> BatchedParams {
        let taped = parameters.write_to(self.layer.clone()).train();
        let rows = Tensor::<2>::from_inner(self.rows.clone()).require_grad();
        let output = linear_deferred(rows, || taped.weight.val(), None);
        let loss = (output * Tensor::from_inner(self.gradient.clone())).cast(FloatDType::F32).sum();
        on_forward();
        parameters.batch_gradients(AdapterGradients::collect(&taped, &loss.backward()))
    }
}

/// The sizes of a batch.
#[derive(Clone, Copy)]
pub(crate) struct BatchSizes {
    /// Number of images.
    pub(crate) images: usize,
    /// Side of the latents.
    pub(crate) latents: usize,
    /// Tokens of a prompt.
    pub(crate) tokens: usize,
}

/// A batch of one training step.
#[derive(Clone)]
pub(crate) struct RandomBatch {
    /// `[batch, channels, height, width]`
    noisy: Tensor<4>,
    /// `[batch]`
    timesteps: Tensor<1>,
    condition: Condition,
    /// `[batch, channels, height, width]`
    target: Tensor<4>,
}

impl RandomBatch {
    /// Draws a batch of these sizes.
    pub(crate) fn new(
        config: &DenoiserConfig,
        BatchSizes { images: size, latents, tokens }: BatchSizes,
        dtype: FloatDType,
        device: &Device,
    ) -> Self {
        let map = || normal([size, config.in_channels(), latents, latents], dtype, device);
        let text = |width| normal([size, tokens, width], dtype, device);
        let condition = match config {
            DenoiserConfig::Unet(config) => Condition {
                text: text(config.cross_attention_dim.get(0)),
                lengths: None,
                added: added_condition(config, [size, latents], dtype, device),
            },
            DenoiserConfig::Flux2(config) => text(config.joint_attention_dim).into(),
            DenoiserConfig::ZImage(config) => Condition {
                text: text(config.cap_feat_dim),
                lengths: Some(vec![tokens; size]),
                added: None,
            },
        };
        Self {
            noisy: map(),
            timesteps: Tensor::full([size], 500.0, device),
            condition,
            target: map(),
        }
    }

    /// The gradients of the mean squared error of `denoiser` with these adapter parameters.
    ///
    /// Calls `on_forward` between the forward and the backward pass.
    fn gradients(
        &self,
        denoiser: &Denoiser,
        parameters: &BatchedParams,
        checkpointing: GradientCheckpointing,
        on_forward: impl FnOnce(),
    ) -> BatchedParams {
        let denoiser = parameters.write_to(denoiser.clone());
        let inputs = DenoiserInputs {
            noisy: self.noisy.clone(),
            timesteps: self.timesteps.clone(),
            condition: self.condition.clone(),
            wants_condition_gradient: false,
        };
        let gradients = checkpointing.backward(&denoiser, inputs, |prediction| {
            let error = prediction - Tensor::from_inner(self.target.clone());
            let loss = error.cast(FloatDType::F32).square().mean();
            on_forward();
            loss
        });
        parameters.batch_gradients(gradients.adapters)
    }
}

/// SDXL's additional inputs of `size` samples with square latents of side `latents`. `None` for other UNets.
fn added_condition(
    config: &UnetConfig,
    [size, latents]: [usize; 2],
    dtype: FloatDType,
    device: &Device,
) -> Option<AddedCondition> {
    let side = (8 * latents) as f32;
    config.projection_class_embeddings_input_dim.map(|width| {
        let pooled = width - 6 * config.addition_time_embed_dim.unwrap_or(0);
        let ids = [side, side, 0.0, 0.0, side, side];
        AddedCondition {
            pooled: normal([size, pooled], dtype, device),
            time_ids: Tensor::<1>::from_floats(ids, device).unsqueeze().repeat_dim(0, size),
        }
    })
}

fn normal<const D: usize>(shape: [usize; D], dtype: FloatDType, device: &Device) -> Tensor<D> {
    Tensor::<D>::random(shape, Distribution::Normal(0.0, 1.0), device).cast(dtype)
}
