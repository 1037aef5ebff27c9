//! CLIP's picture encoder: a vision transformer (Dosovitskiy et al., arXiv 2010.11929).
//!
//! The picture is cut into patches, each becomes a token, and a learned class token before them
//! gathers what the picture is. Mirrors transformers' `CLIPVisionModel`.

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig};
use burn::tensor::{Device, Tensor};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::encoder::{Activation, Encoder, EncoderConfig};
use super::pretrained::{fields, picture_fits};
use crate::config::Refusal;

/// The `vision_config` of a `CLIPModel`.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct ClipVisionConfig {
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
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl<'de> Deserialize<'de> for ClipVisionConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The joint space belongs to the `CLIPModel`, and a picture has no tokens to end with.
        let fields = fields(deserializer, &["projection_dim", "eos_token_id"])?;
        Self::deserialize(Value::Object(fields)).map_err(D::Error::custom)
    }
}

impl ClipVisionConfig {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        picture_fits(
            [self.hidden_size, self.num_attention_heads],
            [self.image_size, self.patch_size, self.num_channels],
        )
    }

    /// An untrained picture encoder.
    pub fn init(&self, device: &Device) -> VisionTransformer {
        let width = self.hidden_size;
        let patch = [self.patch_size; 2];
        let norm = || LayerNormConfig::new(width).with_epsilon(self.layer_norm_eps).init(device);
        let patches = (self.image_size / self.patch_size).pow(2);
        let encoder = EncoderConfig {
            width,
            inner: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            norm_eps: self.layer_norm_eps,
            qkv_bias: true,
            layer_scale: false,
        };
        VisionTransformer {
            embeddings: VisionEmbeddings {
                class_embedding: Param::from_tensor(Tensor::zeros([width], device)),
                patch_embedding: Conv2dConfig::new([self.num_channels, width], patch)
                    .with_stride(patch)
                    .with_bias(false)
                    .init(device),
                position_embedding: EmbeddingConfig::new(patches + 1, width).init(device),
            },
            pre_layrnorm: norm(),
            encoder: encoder.init(device),
            post_layernorm: norm(),
        }
    }
}

/// Embeddings, transformer, norms.
#[derive(Module, Debug)]
pub struct VisionTransformer {
    /// Patches and positions.
    pub embeddings: VisionEmbeddings,
    /// Before the first layer; misspelled in every checkpoint.
    pub pre_layrnorm: LayerNorm,
    /// The transformer.
    pub encoder: Encoder,
    /// After the last layer, on the class token alone.
    pub post_layernorm: LayerNorm,
}

/// Patches and positions to vectors.
#[derive(Module, Debug)]
pub struct VisionEmbeddings {
    /// The class token.
    pub class_embedding: Param<Tensor<1>>,
    /// Pixels of a patch to a token.
    pub patch_embedding: Conv2d,
    /// One vector for the class token and one for each patch.
    pub position_embedding: Embedding,
}

impl VisionTransformer {
    /// The summary of each picture, `[b, width]`, from its `pixels` `[b, 3, h, w]`, normalised as
    /// `preprocessor_config.json` says; `h` and `w` are the size of the config.
    pub fn pooled(&self, pixels: Tensor<4>) -> Tensor<2> {
        let VisionEmbeddings { class_embedding, patch_embedding, position_embedding } =
            &self.embeddings;
        let class = class_embedding.val().unsqueeze();
        let positions = position_embedding.weight.val().unsqueeze();
        let x = embed_patches(patch_embedding, class, positions, pixels);
        let x = self.encoder.forward(self.pre_layrnorm.forward(x), None);
        let class = x.narrow(1, 0, 1).squeeze_dim::<2>(1);
        self.post_layernorm.forward(class)
    }
}

/// Patches of `pixels` `[b, c, h, w]` as tokens, after the class token and with positions added.
///
/// `class`: `[1, 1, width]`; `positions`: `[1, n + 1, width]`; returns `[b, n + 1, width]`.
#[track_caller]
pub(crate) fn embed_patches(
    patch: &Conv2d,
    class: Tensor<3>,
    positions: Tensor<3>,
    pixels: Tensor<4>,
) -> Tensor<3> {
    let [batch, _, height, width] = pixels.dims();
    let patches = patch.forward(pixels).flatten::<3>(2, 3).swap_dims(1, 2);
    let (found, expected) = (patches.dims()[1] + 1, positions.dims()[1]);
    assert_eq!(found, expected, "pictures of {width}x{height} are not of the model's size");
    Tensor::cat(vec![class.repeat_dim(0, batch), patches], 1) + positions
}
