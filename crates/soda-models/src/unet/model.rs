//! The modules of the UNet: a denoiser of latents, conditioned on a timestep and on text.
//!
//! The fields are the checkpoint's keys. The UNet knows nothing of adapters, which change its weights from
//! outside. Mirrors diffusers' `UNet2DConditionModel` of Latent Diffusion (arXiv 2112.10752).

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{GroupNorm, GroupNormConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor};

use crate::condition::{AddedCondition, Timestep};
use crate::stages::Trainable;
use crate::unet::blocks::{BlockBuilder, DownBlock, MidBlock, UpBlock};
use crate::unet::config::{DownBlockType, UnetConfig, UpBlockType};
use crate::unet::embedding::{TimestepEmbedding, sinusoidal_embedding};
use crate::unet::resnet::{Downsample, Upsample, conv3x3};

/// The UNet of Stable Diffusion. [`UnetConfig::init`] makes one, and [`crate::weights::load`] loads its
/// weights.
#[derive(Module, Debug)]
pub struct Unet {
    /// Convolution from latents to features.
    pub conv_in: Conv2d,
    /// MLP of the timestep's sinusoids.
    pub time_embedding: TimestepEmbedding,
    /// MLP of SDXL's pooled text and time ids.
    pub add_embedding: Option<TimestepEmbedding>,
    /// Down blocks, outermost first.
    pub down_blocks: Vec<DownBlock>,
    /// Up blocks, innermost first.
    pub up_blocks: Vec<UpBlock>,
    /// The middle block.
    pub mid_block: MidBlock,
    /// Group norm of the last features.
    pub conv_norm_out: GroupNorm,
    /// Convolution from features to the prediction.
    pub conv_out: Conv2d,
    /// Whether cosines come before sines in the timestep's sinusoids.
    pub flip_sin_to_cos: bool,
    /// Shift of the sinusoids' frequencies.
    pub freq_shift: f64,
    /// Sinusoids of each of SDXL's time ids.
    pub time_id_channels: usize,
}

impl UnetConfig {
    /// Makes a UNet with random weights.
    pub fn init(&self, device: &Device) -> Unet {
        let channels = &self.block_out_channels;
        let levels = channels.len();
        let build = BlockBuilder { config: self, device };

        let down_blocks = (0..levels).map(|level| {
            let from = channels[level.saturating_sub(1)];
            let attention = self.down_block_types[level] == DownBlockType::CrossAttnDownBlock2D;
            let layers = self.layers_per_block.get(level);
            DownBlock {
                attentions: (0..layers * usize::from(attention))
                    .map(|_| build.transformer(level))
                    .collect(),
                resnets: (0..layers)
                    .map(|i| {
                        build.resnet(if i == 0 { from } else { channels[level] }, channels[level])
                    })
                    .collect(),
                downsamplers: (level + 1 < levels)
                    .then(|| Downsample::init(channels[level], [1; 4], device))
                    .into_iter()
                    .collect(),
            }
        });

        // The up blocks visit the levels in reverse; `skip` is the width of the skip connection.
        let up_blocks = (0..levels).rev().enumerate().map(|(i, level)| {
            let below = channels[(level + 1).min(levels - 1)];
            let above = channels[level.saturating_sub(1)];
            let attention = self.up_block_types[i] == UpBlockType::CrossAttnUpBlock2D;
            let layers = self.layers_per_block.get(level) + 1;
            UpBlock {
                attentions: (0..layers * usize::from(attention))
                    .map(|_| build.transformer(level))
                    .collect(),
                resnets: (0..layers)
                    .map(|j| {
                        let from = if j == 0 { below } else { channels[level] };
                        let skip = if j + 1 == layers { above } else { channels[level] };
                        build.resnet(from + skip, channels[level])
                    })
                    .collect(),
                upsamplers: (level > 0)
                    .then(|| Upsample::init(channels[level], device))
                    .into_iter()
                    .collect(),
            }
        });

        let (first, last) = (channels[0], levels - 1);
        Unet {
            conv_in: conv3x3(self.in_channels, first, device),
            time_embedding: TimestepEmbedding::init(first, self.time_embed_dim(), device),
            add_embedding: self
                .addition_embed_type
                .and(self.projection_class_embeddings_input_dim)
                .map(|width| TimestepEmbedding::init(width, self.time_embed_dim(), device)),
            down_blocks: down_blocks.collect(),
            up_blocks: up_blocks.collect(),
            mid_block: MidBlock {
                attentions: vec![build.transformer(last)],
                resnets: (0..2).map(|_| build.resnet(channels[last], channels[last])).collect(),
            },
            conv_norm_out: GroupNormConfig::new(self.norm_num_groups, first)
                .with_epsilon(self.norm_eps)
                .init(device),
            conv_out: conv3x3(first, self.out_channels, device),
            flip_sin_to_cos: self.flip_sin_to_cos,
            freq_shift: self.freq_shift,
            time_id_channels: self.addition_time_embed_dim.unwrap_or(0),
        }
    }
}

impl Unet {
    /// Whether the result of [`embed_time`](Self::embed_time) depends on trainable parameters.
    pub(super) fn time_embedding_is_trainable(&self) -> bool {
        let mut found = Trainable(false);
        self.time_embedding.visit(&mut found);
        self.add_embedding.visit(&mut found);
        found.0
    }

    /// Embeds timestep and added condition, `[b, e]`, and applies the silu with which each residual block
    /// starts.
    ///
    /// # Panics
    ///
    /// If the UNet is SDXL's and `added` is `None`.
    #[track_caller]
    pub fn embed_time(&self, timestep: Timestep, added: Option<AddedCondition>) -> Tensor<2> {
        let dtype = self.time_embedding.linear_1.weight.val().dtype();
        let sinusoids = |values, channels| {
            sinusoidal_embedding(values, channels, self.flip_sin_to_cos, self.freq_shift)
                .cast(dtype)
        };
        let time = sinusoids(timestep.0, self.conv_norm_out.num_channels);
        let mut time = self.time_embedding.forward(time);
        if let Some(embedding) = &self.add_embedding {
            let AddedCondition { pooled, time_ids } =
                added.expect("SDXL's UNet needs the pooled text and the time ids");
            let [batch, ids] = time_ids.dims();
            let ids = sinusoids(time_ids.flatten(0, 1), self.time_id_channels)
                .reshape([batch, ids * self.time_id_channels]);
            time = time + embedding.forward(Tensor::cat(vec![pooled, ids], 1));
        }
        silu(time)
    }
}
