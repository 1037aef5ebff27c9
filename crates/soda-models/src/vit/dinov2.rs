//! DINOv2 (Oquab et al., arXiv 2304.07193): a vision transformer with layer scale, whose positions
//! are interpolated to the size of the picture; and with registers (Darcet et al., arXiv 2309.16588), tokens that
//! stand for no patch. Mirrors transformers' `Dinov2Model` and `Dinov2WithRegistersModel`.

use burn::tensor::Device;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{Parts, VitConfig, VitModel};
use crate::clip::encoder::Activation;
use crate::clip::pretrained::{fields, picture_fits};
use crate::config::{ConfigFile, Refusal};

/// The `config.json` of a `Dinov2Model` or a `Dinov2WithRegistersModel`.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct Dinov2Config {
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the MLPs, in widths of the hidden states.
    pub mlp_ratio: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Channels of a picture.
    pub num_channels: usize,
    /// Side of a picture of training; others are read too.
    pub image_size: usize,
    /// Side of a patch.
    pub patch_size: usize,
    /// Nonlinearity of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the MLPs are gated ([`Activation::SwiGlu`]), as the giant model's are.
    pub use_swiglu_ffn: bool,
    /// Registers, of the model that has them.
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
        // Of training, and of the model as another one's backbone.
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
    const WHAT: &'static str = VitConfig::WHAT;

    const NEUTRAL: &'static [(&'static str, &'static str)] = &[];

    fn check(&self) -> Result<(), Refusal> {
        if self.mlp_ratio == 0 {
            let (value, supported) = ("0".to_string(), "a ratio above zero");
            return Err(Refusal { field: "mlp_ratio", value, supported });
        }
        picture_fits(
            [self.hidden_size, self.num_attention_heads],
            [self.image_size, self.patch_size, self.num_channels],
        )
    }
}

impl Dinov2Config {
    /// An untrained model.
    pub fn init(&self, device: &Device) -> VitModel {
        let inner = self.hidden_size * self.mlp_ratio;
        let (inner, hidden_act) = if self.use_swiglu_ffn {
            // Two thirds, since there are three matrices then and not two; up to a multiple of 8.
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
        vit.build(Parts { layer_scale: true, registers: self.num_register_tokens }, device)
    }
}
