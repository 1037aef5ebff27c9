//! One resolution of the UNet on the way down, at the bottom, and on the way up.
//!
//! Mirrors diffusers' `(CrossAttn)DownBlock2D`, `UNetMidBlock2DCrossAttn` and
//! `(CrossAttn)UpBlock2D`. A block without attention is one whose `attentions` is empty, as in the
//! checkpoint, where it merely has no such keys.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::unet::config::UnetConfig;
use crate::unet::resnet::{Downsample, ResnetBlock, ResnetConfig, Upsample};
use crate::unet::transformer::{SpatialTransformer, TransformerConfig};

/// What all blocks of a UNet share, and what they are made of.
pub(crate) struct BlockBuilder<'a> {
    pub(crate) config: &'a UnetConfig,
    pub(crate) device: &'a Device,
}

impl BlockBuilder<'_> {
    pub(crate) fn resnet(&self, channels_in: usize, channels_out: usize) -> ResnetBlock {
        ResnetConfig {
            channels_in,
            channels_out,
            time_embed_dim: Some(self.config.time_embed_dim()),
            groups: self.config.norm_num_groups,
            eps: self.config.norm_eps,
        }
        .init(self.device)
    }

    /// A transformer for the resolution `level`, counted from the outermost.
    pub(crate) fn transformer(&self, level: usize) -> SpatialTransformer {
        TransformerConfig {
            channels: self.config.block_out_channels[level],
            context: self.config.cross_attention_dim.get(level),
            heads: self.config.heads(level),
            layers: self.config.transformer_layers_per_block.get(level),
            groups: self.config.norm_num_groups,
            linear: self.config.use_linear_projection,
            upcast: self.config.upcast_attention,
        }
        .init(self.device)
    }
}

/// A resolution on the way down.
#[derive(Module, Debug)]
pub struct DownBlock {
    /// One transformer for each residual block, or none.
    pub attentions: Vec<SpatialTransformer>,
    /// The residual blocks.
    pub resnets: Vec<ResnetBlock>,
    /// One layer, or none at the lowest resolution.
    pub downsamplers: Vec<Downsample>,
}

impl DownBlock {
    /// `x`: `[b, c, h, w]`; `time`: `[b, e]`; `text`: `[b, m, d]`.
    ///
    /// Every intermediate map is pushed to `skips`, for the way up.
    pub fn forward(
        &self,
        mut x: Tensor<4>,
        time: &Tensor<2>,
        text: &Tensor<3>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(x, Some(time));
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(x, text);
            }
            skips.push(x.clone());
        }
        if let Some(downsample) = self.downsamplers.first() {
            x = downsample.forward(x);
            skips.push(x.clone());
        }
        x
    }
}

/// The lowest resolution: a transformer between two residual blocks.
#[derive(Module, Debug)]
pub struct MidBlock {
    /// The transformer.
    pub attentions: Vec<SpatialTransformer>,
    /// The residual blocks, one more than transformers.
    pub resnets: Vec<ResnetBlock>,
}

impl MidBlock {
    /// `x`: `[b, c, h, w]`; `time`: `[b, e]`; `text`: `[b, m, d]`.
    pub fn forward(&self, x: Tensor<4>, time: &Tensor<2>, text: &Tensor<3>) -> Tensor<4> {
        let mut x = self.resnets[0].forward(x, Some(time));
        for (attention, resnet) in self.attentions.iter().zip(&self.resnets[1..]) {
            x = resnet.forward(attention.forward(x, text), Some(time));
        }
        x
    }
}

/// A resolution on the way up.
#[derive(Module, Debug)]
pub struct UpBlock {
    /// One transformer for each residual block, or none.
    pub attentions: Vec<SpatialTransformer>,
    /// The residual blocks, each joined by a skip connection.
    pub resnets: Vec<ResnetBlock>,
    /// One layer, or none at the highest resolution.
    pub upsamplers: Vec<Upsample>,
}

impl UpBlock {
    /// `x`: `[b, c, h, w]`; `time`: `[b, e]`; `text`: `[b, m, d]`.
    ///
    /// `skips` loses one map for each residual block; the next one left gives the size to grow to.
    pub fn forward(
        &self,
        mut x: Tensor<4>,
        time: &Tensor<2>,
        text: &Tensor<3>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            if let Some(skip) = skips.pop() {
                x = Tensor::cat(vec![x, skip], 1);
            }
            x = resnet.forward(x, Some(time));
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(x, text);
            }
        }
        match (self.upsamplers.first(), skips.last()) {
            (Some(upsample), Some(next)) => {
                let [_, _, height, width] = next.dims();
                upsample.forward(x, [height, width])
            }
            _ => x,
        }
    }
}
