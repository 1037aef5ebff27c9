//! The transformer: a denoiser of packed latents, conditioned on a timestep and on text.
//!
//! The fields are the checkpoint's keys, and no linear layer has a bias. Mirrors diffusers'
//! `Flux2Transformer2DModel`.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor};

use super::config::{AXES, Flux2Config};
use super::double_block::DoubleBlock;
use super::modulation::{AdaLayerNorm, Modulation};
use super::single_block::SingleBlock;
use crate::condition::Timestep;
use crate::rotary::RotaryAxes;
use crate::stages;
use crate::unet::{TimestepEmbedding, sinusoidal_embedding};

/// The transformer of FLUX.2 klein. [`Flux2Config::init`] makes one, and [`crate::weights::load`] loads its
/// weights.
#[derive(Module, Debug)]
pub struct Flux2Transformer {
    /// Embedding of the timestep.
    pub time_guidance_embed: TimeEmbedding,
    /// Modulation of the image in all double blocks.
    pub double_stream_modulation_img: Modulation,
    /// Modulation of the text in all double blocks.
    pub double_stream_modulation_txt: Modulation,
    /// Modulation of all single blocks.
    pub single_stream_modulation: Modulation,
    /// Linear layer from latents to tokens.
    pub x_embedder: Linear,
    /// Linear layer from the text's hidden states to tokens.
    pub context_embedder: Linear,
    /// Blocks in which image and text have weights of their own.
    pub transformer_blocks: Vec<DoubleBlock>,
    /// Blocks in which image and text share their weights.
    pub single_transformer_blocks: Vec<SingleBlock>,
    /// The last norm.
    pub norm_out: AdaLayerNorm,
    /// Linear layer from tokens to the prediction.
    pub proj_out: Linear,
    /// The axes of the rotary position embeddings.
    #[module(skip)]
    pub rotary: RotaryAxes<AXES>,
    /// Epsilon of the last norm.
    pub eps: f64,
}

/// The MLP of the timestep's sinusoids. Its field gives the layers their keys.
#[derive(Module, Debug)]
pub struct TimeEmbedding {
    /// The MLP.
    pub timestep_embedder: TimestepEmbedding,
}

impl Flux2Config {
    /// Makes a transformer with random weights.
    pub fn init(&self, device: &Device) -> Flux2Transformer {
        let width = self.width();
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        let modulation = |layers| Modulation::init(width, layers, device);
        Flux2Transformer {
            time_guidance_embed: TimeEmbedding {
                timestep_embedder: TimestepEmbedding {
                    linear_1: linear(self.timestep_guidance_channels, width),
                    linear_2: linear(width, width),
                },
            },
            double_stream_modulation_img: modulation(2),
            double_stream_modulation_txt: modulation(2),
            single_stream_modulation: modulation(1),
            x_embedder: linear(self.in_channels, width),
            context_embedder: linear(self.joint_attention_dim, width),
            transformer_blocks: (0..self.num_layers)
                .map(|_| DoubleBlock::init(self, device))
                .collect(),
            single_transformer_blocks: (0..self.num_single_layers)
                .map(|_| SingleBlock::init(self, device))
                .collect(),
            norm_out: AdaLayerNorm::init(width, device),
            proj_out: linear(width, self.in_channels),
            rotary: RotaryAxes::new(&self.axes_dims_rope, self.rope_theta),
            eps: self.eps,
        }
    }
}

impl Flux2Transformer {
    /// Predicts the velocity in noisy latents, `noise - x0`.
    ///
    /// `sample` is `[b, c, h, w]` with the config's `in_channels`: each position is a token. `timestep` is
    /// `[b]`, from 0 (an image) to 1000 (noise), and `text` is `[b, m, d]` with the config's
    /// `joint_attention_dim`. Returns `[b, c, h, w]`.
    ///
    /// The timestep is embedded in f32. diffusers rounds it to the dtype of `sample` first.
    pub fn forward(
        &self,
        sample: Tensor<4>,
        timestep: impl Into<Timestep>,
        text: Tensor<3>,
    ) -> Tensor<4> {
        stages::forward(self, sample, timestep.into(), text.into())
    }

    /// Embeds the timestep, `[b, c]`, and applies the silu with which each modulation starts.
    pub(super) fn embed_time(&self, timestep: Timestep) -> Tensor<2> {
        let embedder = &self.time_guidance_embed.timestep_embedder;
        let weight = embedder.linear_1.weight.val();
        let sinusoids = sinusoidal_embedding(timestep.0, weight.dims()[0], true, 0.0);
        silu(embedder.forward(sinusoids.cast(weight.dtype())))
    }
}

/// The positions of `text` tokens and of an image of `height` x `width` tokens after them.
///
/// Token `l` of the text is at `(0, 0, 0, l)`, and the token of an image at `(0, row, column, 0)`.
pub(super) fn positions(text: usize, [height, width]: [usize; 2]) -> Vec<[usize; AXES]> {
    let text = (0..text).map(|place| [0, 0, 0, place]);
    let image = (0..height).flat_map(|row| (0..width).map(move |column| [0, row, column, 0]));
    text.chain(image).collect()
}
