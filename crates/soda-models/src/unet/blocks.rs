//! The blocks of the UNet: one resolution each, down, in the middle or up.
//!
//! A block without attention has empty `attentions`, as its checkpoint has no such keys. The file `segments`
//! says what the blocks compute and in which order. Mirrors diffusers' `(CrossAttn)DownBlock2D`,
//! `UNetMidBlock2DCrossAttn` and `(CrossAttn)UpBlock2D`.

use burn::module::Module;
use burn::tensor::Device;

use crate::unet::config::UnetConfig;
use crate::unet::resnet::{Downsample, ResnetBlock, ResnetConfig, Upsample};
use crate::unet::transformer::{SpatialTransformer, TransformerConfig};

/// Makes the layers that all blocks of a UNet consist of.
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

    /// Makes the transformer of resolution `level`, counted from the outermost.
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

/// A down block: one resolution of the UNet's encoder.
#[derive(Module, Debug)]
pub struct DownBlock {
    /// Transformers, one for each residual block, or none.
    pub attentions: Vec<SpatialTransformer>,
    /// Residual blocks.
    pub resnets: Vec<ResnetBlock>,
    /// Downsampling layer. Empty at the lowest resolution.
    pub downsamplers: Vec<Downsample>,
}

/// The middle block: a transformer between two residual blocks at the lowest resolution.
#[derive(Module, Debug)]
pub struct MidBlock {
    /// Transformers, one less than residual blocks.
    pub attentions: Vec<SpatialTransformer>,
    /// Residual blocks.
    pub resnets: Vec<ResnetBlock>,
}

/// An up block: one resolution of the UNet's decoder.
#[derive(Module, Debug)]
pub struct UpBlock {
    /// Transformers, one for each residual block, or none.
    pub attentions: Vec<SpatialTransformer>,
    /// Residual blocks, each with a skip connection from a down block.
    pub resnets: Vec<ResnetBlock>,
    /// Upsampling layer. Empty at the highest resolution.
    pub upsamplers: Vec<Upsample>,
}
