//! The denoiser: a UNet over latents, conditioned on a timestep and on text.
//!
//! Latent Diffusion (arXiv 2112.10752); mirrors diffusers' `UNet2DConditionModel`. The fields are
//! the checkpoint's keys. It knows nothing of adapters: those change the attention projections
//! from outside.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{GroupNorm, GroupNormConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor};

use crate::unet::blocks::{BlockBuilder, DownBlock, MidBlock, UpBlock};
use crate::unet::condition::{AddedCondition, Condition, Timestep};
use crate::unet::config::{DownBlockType, UnetConfig, UpBlockType};
use crate::unet::embedding::{TimestepEmbedding, sinusoids};
use crate::unet::resnet::{Downsample, Upsample, conv3x3};
use crate::unet::stages::Trained;

/// The denoiser.
#[derive(Module, Debug)]
pub struct Unet {
    /// Latents to features.
    pub conv_in: Conv2d,
    /// MLP over the timestep's sinusoids.
    pub time_embedding: TimestepEmbedding,
    /// MLP over SDXL's pooled text and time ids.
    pub add_embedding: Option<TimestepEmbedding>,
    /// The way down, outermost first.
    pub down_blocks: Vec<DownBlock>,
    /// The way up, innermost first.
    pub up_blocks: Vec<UpBlock>,
    /// The lowest resolution.
    pub mid_block: MidBlock,
    /// Norm of the last features.
    pub conv_norm_out: GroupNorm,
    /// Features to the prediction.
    pub conv_out: Conv2d,
    /// Cosines before sines in the timestep's sinusoids.
    pub flip_sin_to_cos: bool,
    /// Shift of the sinusoids' frequencies.
    pub freq_shift: f64,
    /// Sinusoids of each of SDXL's time ids.
    pub time_id_channels: usize,
}

impl UnetConfig {
    /// An untrained UNet.
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

        // The way up visits the levels in reverse; `skip` is the width that the way down left.
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
    /// Predicts the noise (or velocity) in noisy latents.
    ///
    /// `sample`: `[b, c, h, w]`; `timestep`: `[b]`, one for each sample; `condition`: the text
    /// `[b, m, d]`, and for SDXL what belongs to it. Returns `[b, c, h, w]`.
    ///
    /// # Panics
    ///
    /// If the UNet is SDXL's and the condition has no [`AddedCondition`].
    ///
    /// [`AddedCondition`]: crate::unet::AddedCondition
    #[track_caller]
    pub fn forward(
        &self,
        sample: Tensor<4>,
        timestep: impl Into<Timestep>,
        condition: impl Into<Condition>,
    ) -> Tensor<4> {
        let Condition { text, added } = condition.into();
        let time = self.embed_time(timestep.into(), added);
        let (mut x, mut skips) = (sample, Vec::new());
        for stage in self.stages() {
            let input = stage.input(x, &mut skips);
            x = stage.forward(input, &time, &text);
            if stage.leaves_skip() {
                skips.push(x.clone());
            }
        }
        x
    }

    /// Whether training changes what [`embed_time`](Self::embed_time) gives; as
    /// [`Stage::trains`](crate::unet::Stage::trains).
    pub fn trains_time(&self) -> bool {
        let mut found = Trained(false);
        self.time_embedding.visit(&mut found);
        self.add_embedding.visit(&mut found);
        found.0
    }

    /// What the residual blocks are told, `[b, e]`, after the silu that each of them starts with.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    #[track_caller]
    pub fn embed_time(&self, timestep: Timestep, added: Option<AddedCondition>) -> Tensor<2> {
        let dtype = self.time_embedding.linear_1.weight.val().dtype();
        let sinusoids = |values, channels| {
            sinusoids(values, channels, self.flip_sin_to_cos, self.freq_shift).cast(dtype)
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
