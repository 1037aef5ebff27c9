//! The decoder: latents to images. Mirrors diffusers' `Decoder`.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{GroupNorm, GroupNormConfig};
use burn::tensor::{Device, Tensor};
use soda_kernels::{conv2d, group_norm};

use crate::unet::resnet::{ResnetBlock, Upsample, conv3x3};
use crate::vae::config::VaeConfig;
use crate::vae::mid::{EPS, MidBlock, resnet};

/// A decoder block: one resolution.
#[derive(Module, Debug)]
pub struct DecoderBlock {
    /// Residual blocks.
    pub resnets: Vec<ResnetBlock>,
    /// Upsampling layer. Empty at the highest resolution.
    pub upsamplers: Vec<Upsample>,
}

/// The decoder of the autoencoder.
#[derive(Module, Debug)]
pub struct Decoder {
    /// Convolution from latents to features.
    pub conv_in: Conv2d,
    /// Decoder blocks, innermost first.
    pub up_blocks: Vec<DecoderBlock>,
    /// The middle block.
    pub mid_block: MidBlock,
    /// Group norm of the last features.
    pub conv_norm_out: GroupNorm,
    /// Convolution from features to an image.
    pub conv_out: Conv2d,
}

impl Decoder {
    /// Makes a decoder with random weights.
    pub fn init(config: &VaeConfig, device: &Device) -> Self {
        let (channels, groups) = (&config.block_out_channels, config.norm_num_groups);
        let last = channels.len() - 1;
        let up_blocks = (0..=last).rev().map(|level| {
            let (from, to) = (channels[(level + 1).min(last)], channels[level]);
            DecoderBlock {
                resnets: (0..=config.layers_per_block)
                    .map(|i| resnet(if i == 0 { from } else { to }, to, groups, device))
                    .collect(),
                upsamplers: (level > 0).then(|| Upsample::init(to, device)).into_iter().collect(),
            }
        });
        Self {
            conv_in: conv3x3(config.latent_channels, channels[last], device),
            up_blocks: up_blocks.collect(),
            mid_block: MidBlock::init(channels[last], groups, device),
            conv_norm_out: GroupNormConfig::new(groups, channels[0]).with_epsilon(EPS).init(device),
            conv_out: conv3x3(channels[0], config.out_channels, device),
        }
    }

    /// Decodes latents `[b, c, h', w']`, after `post_quant_conv`, to images `[b, 3, h, w]`.
    pub fn forward(&self, latents: Tensor<4>) -> Tensor<4> {
        let mut x = self.mid_block.forward(conv2d(&self.conv_in, latents));
        for block in &self.up_blocks {
            x = block.resnets.iter().fold(x, |x, resnet| resnet.forward(x, None));
            for upsample in &block.upsamplers {
                let [_, _, height, width] = x.dims();
                x = upsample.forward(x, [2 * height, 2 * width]);
            }
        }
        conv2d(&self.conv_out, group_norm(&self.conv_norm_out, x, true))
    }
}
