//! The residual block of the UNet and of the autoencoder, and the layers that change the resolution.
//!
//! ```text
//! h = conv1(silu(norm1(x))) + time_emb_proj(silu(t))
//! y = conv_shortcut(x) + conv2(silu(norm2(h)))
//! ```
//!
//! Mirrors diffusers' `ResnetBlock2D`, `Downsample2D` and `Upsample2D`.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor};
use soda_kernels::{conv2d, conv2d_residual, group_norm, linear, upsample_nearest};

/// Makes a 3x3 convolution that keeps the size.
pub(crate) fn conv3x3(channels_in: usize, channels_out: usize, device: &Device) -> Conv2d {
    Conv2dConfig::new([channels_in, channels_out], [3, 3])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .init(device)
}

/// The sizes of a residual block.
#[derive(Debug, Clone)]
pub struct ResnetConfig {
    /// Channels of the input.
    pub channels_in: usize,
    /// Channels of the output. If they differ from the input's, the shortcut has a 1x1 convolution.
    pub channels_out: usize,
    /// Width of the timestep embedding. `None` in the autoencoder.
    pub time_embed_dim: Option<usize>,
    /// Groups of the group norms.
    pub groups: usize,
    /// Epsilon of the group norms.
    pub eps: f64,
}

impl ResnetConfig {
    /// Makes a block with random weights.
    pub fn init(&self, device: &Device) -> ResnetBlock {
        let norm = |channels| {
            GroupNormConfig::new(self.groups, channels).with_epsilon(self.eps).init(device)
        };
        ResnetBlock {
            norm1: norm(self.channels_in),
            conv1: conv3x3(self.channels_in, self.channels_out, device),
            time_emb_proj: self
                .time_embed_dim
                .map(|width| LinearConfig::new(width, self.channels_out).init(device)),
            norm2: norm(self.channels_out),
            conv2: conv3x3(self.channels_out, self.channels_out, device),
            conv_shortcut: (self.channels_in != self.channels_out).then(|| {
                Conv2dConfig::new([self.channels_in, self.channels_out], [1, 1]).init(device)
            }),
        }
    }
}

/// Two convolutions with a residual connection.
#[derive(Module, Debug)]
pub struct ResnetBlock {
    /// Group norm of the input.
    pub norm1: GroupNorm,
    /// First convolution.
    pub conv1: Conv2d,
    /// Projection of the timestep embedding to a bias for each channel.
    pub time_emb_proj: Option<Linear>,
    /// Group norm between the convolutions.
    pub norm2: GroupNorm,
    /// Second convolution.
    pub conv2: Conv2d,
    /// 1x1 convolution of the residual connection, if the number of channels changes.
    pub conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    /// Computes the block for `x` `[b, c, h, w]`. Returns `[b, c', h, w]`.
    ///
    /// `time` `[b, e]` is the timestep embedding after its silu, which the caller computes once for all
    /// blocks.
    pub fn forward(&self, x: Tensor<4>, time: Option<&Tensor<2>>) -> Tensor<4> {
        let time = self.time_emb_proj.as_ref().zip(time).map(|(project, time)| {
            let bias = project.bias.as_ref().map(|bias| bias.val());
            linear(time.clone(), project.weight.val(), bias)
        });
        let normed = group_norm(&self.norm1, x.clone(), true);
        let hidden =
            group_norm(&self.norm2, conv2d_residual(&self.conv1, normed, time, None), true);
        let residual = match &self.conv_shortcut {
            Some(conv) => conv2d(conv, x),
            None => x,
        };
        conv2d_residual(&self.conv2, hidden, None, Some(residual))
    }
}

/// A convolution of stride 2 that halves the resolution.
#[derive(Module, Debug)]
pub struct Downsample {
    /// The convolution.
    pub conv: Conv2d,
}

impl Downsample {
    /// Makes a layer with random weights. `padding` is `[top, left, bottom, right]`.
    ///
    /// The UNet pads one pixel on each side, the autoencoder only at the bottom and at the right.
    pub fn init(channels: usize, padding: [usize; 4], device: &Device) -> Self {
        let [top, left, bottom, right] = padding;
        let conv = Conv2dConfig::new([channels, channels], [3, 3])
            .with_stride([2, 2])
            .with_padding(PaddingConfig2d::Explicit(top, left, bottom, right))
            .init(device);
        Self { conv }
    }

    /// Maps `[b, c, h, w]` to `[b, c, h/2, w/2]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        conv2d(&self.conv, x)
    }
}

/// Nearest-neighbour upsampling to a given size, then a convolution.
#[derive(Module, Debug)]
pub struct Upsample {
    /// The convolution.
    pub conv: Conv2d,
}

impl Upsample {
    /// Makes a layer with random weights.
    pub fn init(channels: usize, device: &Device) -> Self {
        Self { conv: conv3x3(channels, channels, device) }
    }

    /// Maps `[b, c, h, w]` to `[b, c, size[0], size[1]]`.
    ///
    /// `size` is that of the skip connection, which is not twice `h` and `w` if downsampling rounded.
    pub fn forward(&self, x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
        conv2d(&self.conv, upsample_nearest(x, size))
    }
}
