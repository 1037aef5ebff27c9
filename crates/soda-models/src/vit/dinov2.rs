//! DINOv2 (Oquab et al., arXiv 2304.07193): a vision transformer with layer scale and interpolated positions.
//!
//! One variant has registers (Darcet et al., arXiv 2309.16588): tokens that belong to no patch. Mirrors
//! transformers' `Dinov2Model` and `Dinov2WithRegistersModel`.

use burn::tensor::Device;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::config::VitConfig;
use super::model::{Dinov2Parts, VitModel};
use crate::clip::Activation;
use crate::config::bounds::{REGISTERS, WIDTH, check_epsilon};
use crate::config::pretrained::{check_vision_sizes, fields};
use crate::config::{ConfigFile, InvalidField};

/// The `config.json` of a `Dinov2Model` or a `Dinov2WithRegistersModel`.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct Dinov2Config {
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the MLPs, as a multiple of `hidden_size`.
    pub mlp_ratio: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Channels of an image.
    pub num_channels: usize,
    /// Side of an image in training, in pixels. Other sizes are accepted.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Activation function of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the MLPs are gated ([`Activation::SwiGlu`]), as in the giant model.
    pub use_swiglu_ffn: bool,
    /// Number of registers. `None` for the model without registers.
    pub num_register_tokens: Option<usize>,
}

impl Default for Dinov2Config {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            mlp_ratio: 4,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 14,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-6,
            qkv_bias: true,
            use_swiglu_ffn: false,
            num_register_tokens: None,
        }
    }
}

impl<'de> Deserialize<'de> for Dinov2Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Settings of training, and of the model as a backbone of another one.
        let others = [
            "drop_path_rate",
            "layerscale_value",
            "use_mask_token",
            "apply_layernorm",
            "reshape_hidden_states",
            "out_features",
            "out_indices",
            "stage_names",
        ];
        let fields = fields(deserializer, &others)?;
        Self::deserialize(Value::Object(fields)).map_err(D::Error::custom)
    }
}

impl ConfigFile for Dinov2Config {
    const DESCRIPTION: &'static str = VitConfig::DESCRIPTION;

    const NO_EFFECT: &'static [(&'static str, &'static str)] = &[];

    fn validate(&self) -> Result<(), InvalidField> {
        if self.mlp_ratio == 0 {
            let (value, supported) = ("0".to_string(), "a ratio above zero");
            return Err(InvalidField { field: "mlp_ratio", value, supported });
        }
        let registers = self.num_register_tokens.unwrap_or(0);
        REGISTERS.check("num_register_tokens", registers)?;
        check_epsilon("layer_norm_eps", self.layer_norm_eps)?;
        WIDTH.check("mlp_ratio", self.mlp_ratio.saturating_mul(self.hidden_size))?;
        check_vision_sizes(
            [self.hidden_size, self.num_attention_heads, self.num_hidden_layers],
            [self.image_size, self.patch_size, self.num_channels],
        )
    }
}

impl Dinov2Config {
    /// Makes a model with random weights.
    pub fn init(&self, device: &Device) -> VitModel {
        let inner = self.hidden_size * self.mlp_ratio;
        let (inner, hidden_act) = if self.use_swiglu_ffn {
            // Two thirds of the width, since a gated MLP has three matrices instead of two; rounded up to a
            // multiple of 8.
            ((inner * 2 / 3).next_multiple_of(8), Activation::SwiGlu)
        } else {
            (inner, self.hidden_act)
        };
        let vit = VitConfig {
            hidden_size: self.hidden_size,
            intermediate_size: inner,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_channels: self.num_channels,
            image_size: self.image_size,
            patch_size: self.patch_size,
            hidden_act,
            layer_norm_eps: self.layer_norm_eps,
            qkv_bias: self.qkv_bias,
        };
        vit.build(Dinov2Parts { layer_scale: true, registers: self.num_register_tokens }, device)
    }
}
