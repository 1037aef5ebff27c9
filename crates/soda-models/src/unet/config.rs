//! The UNet's `config.json`.
//!
//! Defaults are those of diffusers' constructor, since an exporter may leave a field out.

use serde::Deserialize;

use crate::config::{ConfigFile, Refusal};

/// One number for all blocks, or one for each.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum PerBlock {
    /// The same for every block.
    All(usize),
    /// One number for each down block, outermost first.
    Each(Vec<usize>),
}

impl PerBlock {
    /// The number of block `index`, counted from the outermost.
    pub fn get(&self, index: usize) -> usize {
        match self {
            Self::All(value) => *value,
            Self::Each(values) => values[index],
        }
    }

    fn fits(&self, blocks: usize) -> bool {
        match self {
            Self::All(_) => true,
            Self::Each(values) => values.len() == blocks,
        }
    }
}

/// A resolution of the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum DownBlockType {
    /// Residual blocks only.
    DownBlock2D,
    /// Each residual block is followed by a transformer over pixels and text.
    CrossAttnDownBlock2D,
}

/// A resolution of the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum UpBlockType {
    /// Residual blocks only.
    UpBlock2D,
    /// Each residual block is followed by a transformer over pixels and text.
    CrossAttnUpBlock2D,
}

/// The fields of a `UNet2DConditionModel` that this port honours.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnetConfig {
    /// Side of the latents that the model was trained on.
    pub sample_size: usize,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Cosines before sines in the timestep embedding.
    pub flip_sin_to_cos: bool,
    /// Shift of the embedding's frequencies.
    pub freq_shift: f64,
    /// The way down, outermost first.
    pub down_block_types: Vec<DownBlockType>,
    /// The way up, innermost first.
    pub up_block_types: Vec<UpBlockType>,
    /// Channels of each resolution, outermost first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of a down block; an up block has one more.
    pub layers_per_block: usize,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Epsilon of the residual blocks' group norms.
    pub norm_eps: f64,
    /// Width of the text's hidden states.
    pub cross_attention_dim: usize,
    /// Transformer layers in each transformer.
    pub transformer_layers_per_block: usize,
    /// The number of *heads*, in spite of its name: a slip that diffusers keeps for the sake of
    /// published configs.
    pub attention_head_dim: PerBlock,
    /// The number of heads where it is given under its true name.
    pub num_attention_heads: Option<PerBlock>,
}

impl Default for UnetConfig {
    fn default() -> Self {
        use {DownBlockType::*, UpBlockType::*};
        Self {
            sample_size: 64,
            in_channels: 4,
            out_channels: 4,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: vec![
                CrossAttnDownBlock2D,
                CrossAttnDownBlock2D,
                CrossAttnDownBlock2D,
                DownBlock2D,
            ],
            up_block_types: vec![
                UpBlock2D,
                CrossAttnUpBlock2D,
                CrossAttnUpBlock2D,
                CrossAttnUpBlock2D,
            ],
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: 2,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: 1280,
            transformer_layers_per_block: 1,
            attention_head_dim: PerBlock::All(8),
            num_attention_heads: None,
        }
    }
}

impl UnetConfig {
    /// Attention heads of resolution `index`, counted from the outermost.
    pub fn heads(&self, index: usize) -> usize {
        self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim).get(index)
    }

    /// Width of the timestep embedding after its MLP.
    pub fn time_embed_dim(&self) -> usize {
        4 * self.block_out_channels[0]
    }
}

impl ConfigFile for UnetConfig {
    const WHAT: &'static str = "the UNet's config.json";

    const NEUTRAL: &'static [(&'static str, &'static str)] = &[
        ("act_fn", "\"silu\""),
        ("act_fn", "\"swish\""),
        ("addition_embed_type", "null"),
        // Read only together with `addition_embed_type`.
        ("addition_embed_type_num_heads", "64"),
        ("addition_time_embed_dim", "null"),
        ("attention_type", "\"default\""),
        ("center_input_sample", "false"),
        ("class_embed_type", "null"),
        ("class_embeddings_concat", "false"),
        ("conv_in_kernel", "3"),
        ("conv_out_kernel", "3"),
        ("cross_attention_norm", "null"),
        ("downsample_padding", "1"),
        ("dropout", "0.0"),
        ("dual_cross_attention", "false"),
        ("encoder_hid_dim", "null"),
        ("encoder_hid_dim_type", "null"),
        ("mid_block_only_cross_attention", "null"),
        ("mid_block_only_cross_attention", "false"),
        ("mid_block_scale_factor", "1"),
        ("mid_block_type", "\"UNetMidBlock2DCrossAttn\""),
        ("num_class_embeds", "null"),
        ("only_cross_attention", "false"),
        ("projection_class_embeddings_input_dim", "null"),
        ("resnet_out_scale_factor", "1.0"),
        ("resnet_skip_time_act", "false"),
        ("resnet_time_scale_shift", "\"default\""),
        ("reverse_transformer_layers_per_block", "null"),
        ("time_cond_proj_dim", "null"),
        ("time_embedding_act_fn", "null"),
        ("time_embedding_dim", "null"),
        ("time_embedding_type", "\"positional\""),
        ("timestep_post_act", "null"),
        // Everything is computed in f32 already.
        ("upcast_attention", "false"),
        ("upcast_attention", "true"),
        ("use_linear_projection", "false"),
    ];

    fn check(&self) -> Result<(), Refusal> {
        let blocks = self.block_out_channels.len();
        let refuse = |field, value: String, supported| Err(Refusal { field, value, supported });
        if blocks == 0 {
            return refuse("block_out_channels", "[]".into(), "at least one block");
        }
        if self.down_block_types.len() != blocks {
            let value = format!("{} blocks", self.down_block_types.len());
            return refuse("down_block_types", value, "as many blocks as `block_out_channels`");
        }
        if self.up_block_types.len() != blocks {
            let value = format!("{} blocks", self.up_block_types.len());
            return refuse("up_block_types", value, "as many blocks as `block_out_channels`");
        }
        let heads = self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim);
        if !heads.fits(blocks) {
            let value = format!("{heads:?}");
            return refuse("attention_head_dim", value, "one number, or one for each block");
        }
        for (index, channels) in self.block_out_channels.iter().enumerate() {
            let groups = self.norm_num_groups;
            if groups == 0 || !channels.is_multiple_of(groups) {
                return refuse("norm_num_groups", groups.to_string(), "a divisor of every width");
            }
            let heads = self.heads(index);
            if heads == 0 || !channels.is_multiple_of(heads) {
                let supported = "a number of heads that divides the block's width";
                return refuse("attention_head_dim", heads.to_string(), supported);
            }
        }
        Ok(())
    }
}
