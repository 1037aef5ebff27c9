//! The `config.json` of a `ViTModel`.

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::clip::Activation;
use crate::config::bounds::{WIDTH, check_epsilon};
use crate::config::pretrained::{check_vision_sizes, fields};
use crate::config::{ConfigFile, InvalidField};

/// The `config.json` of a `ViTModel`.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct VitConfig {
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the MLPs.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Channels of an image.
    pub num_channels: usize,
    /// Side of an image, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Activation function of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
}

impl Default for VitConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 16,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-12,
            qkv_bias: true,
        }
    }
}

impl<'de> Deserialize<'de> for VitConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The decoder and the pooler are parts of other models.
        let others = ["encoder_stride", "pooler_act", "pooler_output_size"];
        let fields = fields(deserializer, &others)?;
        Self::deserialize(Value::Object(fields)).map_err(D::Error::custom)
    }
}

impl ConfigFile for VitConfig {
    const DESCRIPTION: &'static str = "the vision transformer's config.json";

    const NO_EFFECT: &'static [(&'static str, &'static str)] = &[];

    fn validate(&self) -> Result<(), InvalidField> {
        WIDTH.check("intermediate_size", self.intermediate_size)?;
        check_epsilon("layer_norm_eps", self.layer_norm_eps)?;
        check_vision_sizes(
            [self.hidden_size, self.num_attention_heads, self.num_hidden_layers],
            [self.image_size, self.patch_size, self.num_channels],
        )
    }
}
