//! The UNet's `config.json`.
//!
//! The defaults are those of diffusers' constructor, since an exporter may leave a field out.

use serde::{Deserialize, Deserializer};

use crate::config::bounds::{LATENTS, LAYERS, LEVELS, WIDTH, check_epsilon};
use crate::config::{ConfigFile, InvalidField, json_text};

/// One number for all blocks, or one number for each block.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum PerBlock {
    /// The number of every block.
    All(usize),
    /// The numbers of the down blocks, outermost first.
    Each(Vec<usize>),
}

impl PerBlock {
    /// The number of block `index`, counted from the outermost.
    ///
    /// # Panics
    ///
    /// If there is no such block.
    pub fn get(&self, index: usize) -> usize {
        match self {
            Self::All(value) => *value,
            Self::Each(values) => values[index],
        }
    }

    /// The numbers, one if all are the same.
    fn values(&self) -> &[usize] {
        match self {
            Self::All(value) => std::slice::from_ref(value),
            Self::Each(values) => values,
        }
    }

    fn fits(&self, blocks: usize) -> bool {
        match self {
            Self::All(value) => *value > 0,
            Self::Each(values) => values.len() == blocks && !values.contains(&0),
        }
    }
}

/// The kind of a down block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum DownBlockType {
    /// Residual blocks only.
    DownBlock2D,
    /// Residual blocks, each followed by a transformer over pixels and text.
    CrossAttnDownBlock2D,
}

/// The kind of an up block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum UpBlockType {
    /// Residual blocks only.
    UpBlock2D,
    /// Residual blocks, each followed by a transformer over pixels and text.
    CrossAttnUpBlock2D,
}

/// The kind of the addition to the timestep embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdditionEmbedType {
    /// SDXL's addition: the pooled text, and six numbers about sizes and crops.
    TextTime,
}

/// Reads null as false, since some exporters write null for the default.
fn null_is_false<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(false))
}

/// The fields of a `UNet2DConditionModel` that are honoured.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnetConfig {
    /// Side of the latents that the model was trained on.
    pub sample_size: usize,
    /// Channels of the input: those of the latents, and for inpainting those of mask and masked image.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Whether cosines come before sines in the timestep embedding.
    pub flip_sin_to_cos: bool,
    /// Shift of the timestep embedding's frequencies.
    pub freq_shift: f64,
    /// Kinds of the down blocks, outermost first.
    pub down_block_types: Vec<DownBlockType>,
    /// Kinds of the up blocks, innermost first.
    pub up_block_types: Vec<UpBlockType>,
    /// Channels of each resolution, outermost first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of a down block. An up block has one more.
    pub layers_per_block: PerBlock,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Epsilon of the residual blocks' group norms.
    pub norm_eps: f64,
    /// Width of the text's hidden states.
    pub cross_attention_dim: PerBlock,
    /// Transformer blocks of each transformer.
    pub transformer_layers_per_block: PerBlock,
    /// Whether the projections around the transformer blocks are linear layers (SD 2, SDXL) or 1x1
    /// convolutions (SD 1).
    pub use_linear_projection: bool,
    /// Whether attention scores are computed in f32 whatever the dtype of the weights is. SD 2's scores
    /// overflow in f16.
    #[serde(deserialize_with = "null_is_false")]
    pub upcast_attention: bool,
    /// Kind of the addition to the timestep embedding. `None` for all models but SDXL.
    pub addition_embed_type: Option<AdditionEmbedType>,
    /// Sinusoids of each of SDXL's time ids.
    pub addition_time_embed_dim: Option<usize>,
    /// Width of SDXL's pooled text and of the sinusoids of all time ids together.
    pub projection_class_embeddings_input_dim: Option<usize>,
    /// Number of attention *heads*, in spite of its name. diffusers keeps the wrong name for the sake of
    /// published configs.
    pub attention_head_dim: PerBlock,
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
            layers_per_block: PerBlock::All(2),
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: PerBlock::All(1280),
            transformer_layers_per_block: PerBlock::All(1),
            use_linear_projection: false,
            upcast_attention: false,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            attention_head_dim: PerBlock::All(8),
        }
    }
}

impl UnetConfig {
    /// The config of Stable Diffusion 1.5.
    pub fn sd15() -> Self {
        Self { cross_attention_dim: PerBlock::All(768), ..Self::default() }
    }

    /// The config of Stable Diffusion XL.
    pub fn sdxl() -> Self {
        use {DownBlockType::*, UpBlockType::*};
        Self {
            sample_size: 128,
            block_out_channels: vec![320, 640, 1280],
            down_block_types: vec![DownBlock2D, CrossAttnDownBlock2D, CrossAttnDownBlock2D],
            up_block_types: vec![CrossAttnUpBlock2D, CrossAttnUpBlock2D, UpBlock2D],
            transformer_layers_per_block: PerBlock::Each(vec![1, 2, 10]),
            attention_head_dim: PerBlock::Each(vec![5, 10, 20]),
            cross_attention_dim: PerBlock::All(2048),
            use_linear_projection: true,
            addition_embed_type: Some(AdditionEmbedType::TextTime),
            addition_time_embed_dim: Some(256),
            projection_class_embeddings_input_dim: Some(2816),
            ..Self::default()
        }
    }

    /// Number of attention heads of resolution `index`, counted from the outermost.
    pub fn heads(&self, index: usize) -> usize {
        self.attention_head_dim.get(index)
    }

    /// Width of the timestep embedding after its MLP.
    pub fn time_embed_dim(&self) -> usize {
        4 * self.block_out_channels[0]
    }
}

impl ConfigFile for UnetConfig {
    const DESCRIPTION: &'static str = "the UNet's config.json";

    const NO_EFFECT: &'static [(&'static str, &'static str)] = &[
        ("act_fn", "\"silu\""),
        ("act_fn", "\"swish\""),
        // Only refused kinds of `addition_embed_type` read this field.
        ("addition_embed_type_num_heads", "64"),
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
        // diffusers refuses `num_attention_heads`, the true name of `attention_head_dim`, too.
        ("num_attention_heads", "null"),
        ("num_class_embeds", "null"),
        ("only_cross_attention", "false"),
        ("resnet_out_scale_factor", "1.0"),
        ("resnet_skip_time_act", "false"),
        ("resnet_time_scale_shift", "\"default\""),
        ("reverse_transformer_layers_per_block", "null"),
        ("time_cond_proj_dim", "null"),
        ("time_embedding_act_fn", "null"),
        ("time_embedding_dim", "null"),
        ("time_embedding_type", "\"positional\""),
        ("timestep_post_act", "null"),
    ];

    fn validate(&self) -> Result<(), InvalidField> {
        let blocks = self.block_out_channels.len();
        let refuse =
            |field, value: String, supported| Err(InvalidField { field, value, supported });
        if blocks == 0 {
            return refuse("block_out_channels", "[]".into(), "at least one block");
        }
        LEVELS.check("block_out_channels", blocks)?;
        WIDTH.check_all("block_out_channels", &self.block_out_channels)?;
        WIDTH.check_all("cross_attention_dim", self.cross_attention_dim.values())?;
        WIDTH.check_fields(&[
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("addition_time_embed_dim", self.addition_time_embed_dim.unwrap_or(0)),
            (
                "projection_class_embeddings_input_dim",
                self.projection_class_embeddings_input_dim.unwrap_or(0),
            ),
        ])?;
        LATENTS.check("sample_size", self.sample_size)?;
        check_epsilon("norm_eps", self.norm_eps)?;
        // The frequencies are divided by the number of sinusoids less the shift.
        let ids = self.addition_time_embed_dim.unwrap_or(usize::MAX);
        let sinusoids = self.block_out_channels[0].min(ids) / 2;
        if !(0.0..sinusoids as f64).contains(&self.freq_shift) {
            let supported = "a number of at least 0 and below the number of sinusoids";
            return refuse("freq_shift", self.freq_shift.to_string(), supported);
        }
        LAYERS.check_all("layers_per_block", self.layers_per_block.values())?;
        LAYERS.check_all(
            "transformer_layers_per_block",
            self.transformer_layers_per_block.values(),
        )?;
        if self.down_block_types.len() != blocks {
            let value = format!("{} blocks", self.down_block_types.len());
            return refuse("down_block_types", value, "as many blocks as `block_out_channels`");
        }
        if self.up_block_types.len() != blocks {
            let value = format!("{} blocks", self.up_block_types.len());
            return refuse("up_block_types", value, "as many blocks as `block_out_channels`");
        }
        for (field, numbers) in [
            ("attention_head_dim", &self.attention_head_dim),
            ("cross_attention_dim", &self.cross_attention_dim),
            ("layers_per_block", &self.layers_per_block),
            ("transformer_layers_per_block", &self.transformer_layers_per_block),
        ] {
            if !numbers.fits(blocks) {
                let supported = "one positive number, or one for each block";
                return refuse(field, format!("{numbers:?}"), supported);
            }
        }
        let layers =
            |level| self.layers_per_block.get(level) * self.transformer_layers_per_block.get(level);
        let layers: usize = (0..blocks).map(layers).sum();
        if layers > LAYERS.most() {
            let supported = "at most 256 layers in all blocks of one direction";
            return refuse("transformer_layers_per_block", format!("{layers} in all"), supported);
        }
        for (index, channels) in self.block_out_channels.iter().enumerate() {
            let groups = self.norm_num_groups;
            if groups == 0 || !channels.is_multiple_of(groups) {
                return refuse("norm_num_groups", groups.to_string(), "a divisor of every width");
            }
            let heads = self.heads(index);
            if *channels == 0 || !channels.is_multiple_of(heads) {
                let supported = "a number of heads that divides the block's width";
                return refuse("attention_head_dim", heads.to_string(), supported);
            }
        }
        let (added, ids, width) = (
            self.addition_embed_type,
            self.addition_time_embed_dim.unwrap_or(0),
            self.projection_class_embeddings_input_dim.unwrap_or(0),
        );
        match added {
            Some(AdditionEmbedType::TextTime) if ids == 0 || ids % 2 == 1 => refuse(
                "addition_time_embed_dim",
                json_text(&self.addition_time_embed_dim),
                "an even number of sinusoids for the addition_embed_type \"text_time\"",
            ),
            Some(AdditionEmbedType::TextTime) if width <= ids => refuse(
                "projection_class_embeddings_input_dim",
                json_text(&self.projection_class_embeddings_input_dim),
                "the width of the pooled text and of all time ids together",
            ),
            None if width > 0 => refuse(
                "projection_class_embeddings_input_dim",
                width.to_string(),
                "null where addition_embed_type is null",
            ),
            _ => Ok(()),
        }
    }
}
