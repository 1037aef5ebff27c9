//! The encoder: images to the moments of a distribution of latents. Mirrors diffusers' `Encoder`.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{GroupNorm, GroupNormConfig};
use burn::tensor::{Device, Tensor};
use soda_kernels::{conv2d, group_norm};

use crate::unet::resnet::{Downsample, ResnetBlock, conv3x3};
use crate::vae::config::VaeConfig;
use crate::vae::mid::{EPS, MidBlock, resnet};

/// An encoder block: one resolution.
#[derive(Module, Debug)]
pub struct EncoderBlock {
    /// Residual blocks.
    pub resnets: Vec<ResnetBlock>,
    /// Downsampling layer. Empty at the lowest resolution.
    pub downsamplers: Vec<Downsample>,
}

/// The encoder of the autoencoder.
#[derive(Module, Debug)]
pub struct Encoder {
    /// Convolution from images to features.
    pub conv_in: Conv2d,
    /// Encoder blocks, outermost first.
    pub down_blocks: Vec<EncoderBlock>,
    /// The middle block.
    pub mid_block: MidBlock,
    /// Group norm of the last features.
    pub conv_norm_out: GroupNorm,
    /// Convolution from features to moments.
    pub conv_out: Conv2d,
}

impl Encoder {
    /// Makes an encoder with random weights.
    pub fn init(config: &VaeConfig, device: &Device) -> Self {
        let (channels, groups) = (&config.block_out_channels, config.norm_num_groups);
        let last = channels.len() - 1;
        let down_blocks = (0..=last).map(|level| {
            let (from, to) = (channels[level.saturating_sub(1)], channels[level]);
            EncoderBlock {
                resnets: (0..config.layers_per_block)
                    .map(|i| resnet(if i == 0 { from } else { to }, to, groups, device))
                    .collect(),
                downsamplers: (level < last)
                    // Padding at the bottom and at the right only, as in VQGAN.
                    .then(|| Downsample::init(to, [0, 0, 1, 1], device))
                    .into_iter()
                    .collect(),
            }
        });
        Self {
            conv_in: conv3x3(config.in_channels, channels[0], device),
            down_blocks: down_blocks.collect(),
            mid_block: MidBlock::init(channels[last], groups, device),
            conv_norm_out: GroupNormConfig::new(groups, channels[last])
                .with_epsilon(EPS)
                .init(device),
            conv_out: conv3x3(channels[last], 2 * config.latent_channels, device),
        }
    }

    /// Encodes images `[b, 3, h, w]` to moments `[b, 2c, h', w']`, before `quant_conv`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        let mut x = conv2d(&self.conv_in, images);
        for block in &self.down_blocks {
            x = block.resnets.iter().fold(x, |x, resnet| resnet.forward(x, None));
            x = block.downsamplers.iter().fold(x, |x, layer| layer.forward(x));
        }
        x = self.mid_block.forward(x);
        conv2d(&self.conv_out, group_norm(&self.conv_norm_out, x, true))
    }
}
