//! The autoencoder's `config.json`.

use serde::Deserialize;

use crate::config::bounds::{LAYERS, LEVELS, PIXELS, WIDTH};
use crate::config::{ConfigFile, InvalidField};

/// The kind of an encoder block. Stable Diffusion uses one kind only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum EncoderBlockType {
    /// Residual blocks, then a convolution of stride 2.
    DownEncoderBlock2D,
}

/// The kind of a decoder block. Stable Diffusion uses one kind only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum DecoderBlockType {
    /// Residual blocks, then upsampling with a convolution.
    UpDecoderBlock2D,
}

/// The fields of an `AutoencoderKL` that are honoured. The defaults are diffusers'.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaeConfig {
    /// Channels of an image.
    pub in_channels: usize,
    /// Channels of a decoded image.
    pub out_channels: usize,
    /// Kinds of the encoder blocks, one for each resolution.
    pub down_block_types: Vec<EncoderBlockType>,
    /// Kinds of the decoder blocks, one for each resolution.
    pub up_block_types: Vec<DecoderBlockType>,
    /// Channels of each resolution, outermost first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of an encoder block. A decoder block has one more.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Side of the images that the model was trained on, in pixels.
    pub sample_size: usize,
    /// Factor that gives latents unit variance.
    pub scaling_factor: f64,
    /// Whether the autoencoder overflows in f16 and is loaded as f32 then.
    pub force_upcast: bool,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![EncoderBlockType::DownEncoderBlock2D],
            up_block_types: vec![DecoderBlockType::UpDecoderBlock2D],
            block_out_channels: vec![64],
            layers_per_block: 1,
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: 32,
            scaling_factor: 0.18215,
            force_upcast: true,
        }
    }
}

impl VaeConfig {
    /// The number of pixels for each latent along one side.
    pub fn downscale_factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

impl ConfigFile for VaeConfig {
    const DESCRIPTION: &'static str = "the autoencoder's config.json";

    const NO_EFFECT: &'static [(&'static str, &'static str)] = &[
        ("act_fn", "\"silu\""),
        ("act_fn", "\"swish\""),
        ("latents_mean", "null"),
        ("latents_std", "null"),
        ("mid_block_add_attention", "true"),
        ("shift_factor", "null"),
        ("shift_factor", "0"),
        ("use_post_quant_conv", "true"),
        ("use_quant_conv", "true"),
    ];

    fn validate(&self) -> Result<(), InvalidField> {
        let refuse =
            |field, value: String, supported| Err(InvalidField { field, value, supported });
        if self.block_out_channels.is_empty() {
            return refuse("block_out_channels", "[]".into(), "at least one block");
        }
        let blocks = self.block_out_channels.len();
        LEVELS.check("block_out_channels", blocks)?;
        LAYERS.check("layers_per_block", self.layers_per_block)?;
        WIDTH.check_all("block_out_channels", &self.block_out_channels)?;
        WIDTH.check_fields(&[
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
        ])?;
        PIXELS.check("sample_size", self.sample_size)?;
        let supported = "as many blocks as `block_out_channels`";
        if self.down_block_types.len() != blocks {
            let value = format!("{} blocks", self.down_block_types.len());
            return refuse("down_block_types", value, supported);
        }
        if self.up_block_types.len() != blocks {
            let value = format!("{} blocks", self.up_block_types.len());
            return refuse("up_block_types", value, supported);
        }
        let groups = self.norm_num_groups;
        if groups == 0 || self.block_out_channels.iter().any(|c| !c.is_multiple_of(groups)) {
            return refuse("norm_num_groups", groups.to_string(), "a divisor of every width");
        }
        if self.scaling_factor == 0.0 || !self.scaling_factor.is_finite() {
            return refuse("scaling_factor", self.scaling_factor.to_string(), "a number but 0");
        }
        Ok(())
    }
}
