//! A vision transformer (Dosovitskiy et al., arXiv 2010.11929) in the layout of DINO's checkpoints
//! (Caron et al., arXiv 2104.14294).
//!
//! DINO's class token tells individuals of one kind apart, so its cosine is the measure of whether
//! a picture shows *this* mug. Mirrors transformers' `ViTModel` without the pooler.

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::clip::encoder::Activation;
use crate::clip::pretrained::{fields, heads_fit};
use crate::clip::vision::embed_patches;
use crate::config::{ConfigFile, Refusal};
use crate::unet::attention::multi_head;

/// The `config.json` of a `ViTModel`.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct VitConfig {
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the MLPs.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Channels of a picture.
    pub num_channels: usize,
    /// Side of a picture.
    pub image_size: usize,
    /// Side of a patch.
    pub patch_size: usize,
    /// Nonlinearity of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Whether queries, keys and values have a bias.
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
    const WHAT: &'static str = "the vision transformer's config.json";

    const NEUTRAL: &'static [(&'static str, &'static str)] = &[];

    fn check(&self) -> Result<(), Refusal> {
        let refuse = |field, value: usize, supported| {
            Err(Refusal { field, value: value.to_string(), supported })
        };
        if !heads_fit(self.hidden_size, self.num_attention_heads) {
            let supported = "a number of heads that divides `hidden_size`";
            return refuse("num_attention_heads", self.num_attention_heads, supported);
        }
        if self.patch_size == 0 || self.image_size < self.patch_size {
            return refuse("patch_size", self.patch_size, "a patch that fits into `image_size`");
        }
        if self.num_channels != 3 {
            return refuse("num_channels", self.num_channels, "3: red, green and blue");
        }
        Ok(())
    }
}

impl VitConfig {
    /// An untrained model.
    pub fn init(&self, device: &Device) -> VitModel {
        let width = self.hidden_size;
        let patch = [self.patch_size; 2];
        let patches = (self.image_size / self.patch_size).pow(2);
        VitModel {
            embeddings: VitEmbeddings {
                cls_token: Param::from_tensor(Tensor::zeros([1, 1, width], device)),
                patch_embeddings: PatchEmbeddings {
                    projection: Conv2dConfig::new([self.num_channels, width], patch)
                        .with_stride(patch)
                        .init(device),
                },
                position_embeddings: Param::from_tensor(Tensor::zeros(
                    [1, patches + 1, width],
                    device,
                )),
            },
            encoder: VitEncoder {
                layer: (0..self.num_hidden_layers).map(|_| self.init_layer(device)).collect(),
            },
            layernorm: self.init_norm(device),
        }
    }

    fn init_layer(&self, device: &Device) -> VitLayer {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let project = || LinearConfig::new(width, width).with_bias(self.qkv_bias).init(device);
        VitLayer {
            attention: VitAttention {
                attention: VitProjections { query: project(), key: project(), value: project() },
                output: Dense { dense: linear(width, width) },
                heads: self.num_attention_heads,
            },
            intermediate: Dense { dense: linear(width, inner) },
            output: Dense { dense: linear(inner, width) },
            layernorm_before: self.init_norm(device),
            layernorm_after: self.init_norm(device),
            activation: self.hidden_act,
        }
    }

    fn init_norm(&self, device: &Device) -> LayerNorm {
        LayerNormConfig::new(self.hidden_size).with_epsilon(self.layer_norm_eps).init(device)
    }
}

/// A vision transformer.
#[derive(Module, Debug)]
pub struct VitModel {
    /// Patches and positions.
    pub embeddings: VitEmbeddings,
    /// The transformer.
    pub encoder: VitEncoder,
    /// After the last layer.
    pub layernorm: LayerNorm,
}

impl VitModel {
    /// The last hidden states, `[b, n + 1, width]`, of `pixels` `[b, 3, h, w]`, normalised as
    /// `preprocessor_config.json` says; `h` and `w` are the size of the config.
    pub fn forward(&self, pixels: Tensor<4>) -> Tensor<3> {
        let VitEmbeddings { cls_token, patch_embeddings, position_embeddings } = &self.embeddings;
        let (class, positions) = (cls_token.val(), position_embeddings.val());
        let x = embed_patches(&patch_embeddings.projection, class, positions, pixels);
        let x = self.encoder.layer.iter().fold(x, |x, layer| layer.forward(x));
        self.layernorm.forward(x)
    }

    /// What each picture shows, `[b, width]`: the class token's state of [`VitModel::forward`].
    pub fn embedding(&self, pixels: Tensor<4>) -> Tensor<2> {
        self.forward(pixels).narrow(1, 0, 1).squeeze_dim(1)
    }
}

/// Patches and positions to vectors.
#[derive(Module, Debug)]
pub struct VitEmbeddings {
    /// The class token, `[1, 1, width]`.
    pub cls_token: Param<Tensor<3>>,
    /// Patches to tokens.
    pub patch_embeddings: PatchEmbeddings,
    /// One vector for the class token and one for each patch, `[1, n + 1, width]`.
    pub position_embeddings: Param<Tensor<3>>,
}

/// Patches to tokens.
#[derive(Module, Debug)]
pub struct PatchEmbeddings {
    /// Pixels of a patch to a token.
    pub projection: Conv2d,
}

/// A stack of layers.
#[derive(Module, Debug)]
pub struct VitEncoder {
    /// The layers, first to last.
    pub layer: Vec<VitLayer>,
}

/// Self-attention and an MLP, each added to its input.
#[derive(Module, Debug)]
pub struct VitLayer {
    /// Attention of patches over patches.
    pub attention: VitAttention,
    /// First layer of the MLP.
    pub intermediate: Dense,
    /// Second layer of the MLP.
    pub output: Dense,
    /// Before the attention.
    pub layernorm_before: LayerNorm,
    /// Before the MLP.
    pub layernorm_after: LayerNorm,
    /// Between the MLP's layers.
    #[module(skip)]
    pub activation: Activation,
}

impl VitLayer {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = x.clone() + self.attention.forward(self.layernorm_before.forward(x));
        let inner = self.intermediate.dense.forward(self.layernorm_after.forward(x.clone()));
        x + self.output.dense.forward(self.activation.apply(inner))
    }
}

/// Self-attention.
#[derive(Module, Debug)]
pub struct VitAttention {
    /// Queries, keys, values.
    pub attention: VitProjections,
    /// Output projection.
    pub output: Dense,
    /// Number of heads.
    pub heads: usize,
}

impl VitAttention {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let q = self.attention.query.forward(x.clone());
        let k = self.attention.key.forward(x.clone());
        let v = self.attention.value.forward(x);
        self.output.dense.forward(multi_head(q, k, v, self.heads, None))
    }
}

/// The inputs of attention.
#[derive(Module, Debug)]
pub struct VitProjections {
    /// Queries.
    pub query: Linear,
    /// Keys.
    pub key: Linear,
    /// Values.
    pub value: Linear,
}

/// A linear layer one level down, as the checkpoint has them.
#[derive(Module, Debug)]
pub struct Dense {
    /// The layer.
    pub dense: Linear,
}
