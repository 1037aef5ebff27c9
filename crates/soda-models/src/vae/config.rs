//! The autoencoder's `config.json`.

use serde::Deserialize;

use crate::config::{ConfigFile, Refusal};

/// A resolution of the encoder; the one type that Stable Diffusion uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum EncoderBlockType {
    /// Residual blocks, then a convolution of stride 2.
    DownEncoderBlock2D,
}

/// A resolution of the decoder; the one type that Stable Diffusion uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum DecoderBlockType {
    /// Residual blocks, then an upsampling convolution.
    UpDecoderBlock2D,
}

/// The fields of an `AutoencoderKL` that this port honours; the defaults are diffusers'.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaeConfig {
    /// Channels of a picture.
    pub in_channels: usize,
    /// Channels of a decoded picture.
    pub out_channels: usize,
    /// The encoder's blocks, one for each resolution.
    pub down_block_types: Vec<EncoderBlockType>,
    /// The decoder's blocks, one for each resolution.
    pub up_block_types: Vec<DecoderBlockType>,
    /// Channels of each resolution, outermost first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of an encoder block; a decoder block has one more.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Side of the pictures that the model was trained on.
    pub sample_size: usize,
    /// What latents are multiplied by to give them unit variance.
    pub scaling_factor: f64,
    /// Whether it overflows in f16, so that it stays in f32 where the rest of the model is f16.
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
    /// Pixels along one side of a latent.
    pub fn downscale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

impl ConfigFile for VaeConfig {
    const WHAT: &'static str = "the autoencoder's config.json";

    const NEUTRAL: &'static [(&'static str, &'static str)] = &[
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

    fn check(&self) -> Result<(), Refusal> {
        let refuse = |field, value: String, supported| Err(Refusal { field, value, supported });
        if self.block_out_channels.is_empty() {
            return refuse("block_out_channels", "[]".into(), "at least one block");
        }
        let blocks = self.block_out_channels.len();
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
