//! One resolution of the UNet on the way down, at the bottom, and on the way up.
//!
//! Mirrors diffusers' `(CrossAttn)DownBlock2D`, `UNetMidBlock2DCrossAttn` and
//! `(CrossAttn)UpBlock2D`. A block without attention is one whose `attentions` is empty, as in the
//! checkpoint, where it merely has no such keys. What they do, and in which order, is in `stages`.

use burn::module::Module;
use burn::tensor::Device;

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

/// The lowest resolution: a transformer between two residual blocks.
#[derive(Module, Debug)]
pub struct MidBlock {
    /// The transformer.
    pub attentions: Vec<SpatialTransformer>,
    /// The residual blocks, one more than transformers.
    pub resnets: Vec<ResnetBlock>,
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
