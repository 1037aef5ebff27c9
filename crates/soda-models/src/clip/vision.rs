//! CLIP's image encoder: a vision transformer (Dosovitskiy et al., arXiv 2010.11929).
//!
//! The image is cut into patches, each of which becomes a token. The state of a learned class token before
//! them is the pooled output. Mirrors transformers' `CLIPVisionModel`.

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig};
use burn::tensor::{Device, Tensor};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::encoder::{Activation, Encoder, EncoderConfig};
use crate::config::InvalidField;
use crate::config::bounds::{WIDTH, check_epsilon};
use crate::config::pretrained::{check_vision_sizes, fields};

/// The `vision_config` of a `CLIPModel`.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct ClipVisionConfig {
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
        // The joint space belongs to the `CLIPModel`, and an image has no end token.
        let fields = fields(deserializer, &["projection_dim", "eos_token_id"])?;
        Self::deserialize(Value::Object(fields)).map_err(D::Error::custom)
    }
}

impl ClipVisionConfig {
    pub(super) fn validate(&self) -> Result<(), InvalidField> {
        WIDTH.check("intermediate_size", self.intermediate_size)?;
        check_epsilon("layer_norm_eps", self.layer_norm_eps)?;
        check_vision_sizes(
            [self.hidden_size, self.num_attention_heads, self.num_hidden_layers],
            [self.image_size, self.patch_size, self.num_channels],
        )
    }

    /// Makes an image encoder with random weights.
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

/// Embeddings, transformer and norms of an image encoder.
#[derive(Module, Debug)]
pub struct VisionTransformer {
    /// Patch and position embeddings.
    pub embeddings: VisionEmbeddings,
    /// Layer norm before the first layer. The name is misspelled in every checkpoint.
    pub pre_layrnorm: LayerNorm,
    /// The transformer.
    pub encoder: Encoder,
    /// Layer norm of the class token after the last layer.
    pub post_layernorm: LayerNorm,
}

/// Patch and position embeddings.
#[derive(Module, Debug)]
pub struct VisionEmbeddings {
    /// The class token.
    pub class_embedding: Param<Tensor<1>>,
    /// Convolution from the pixels of a patch to a token.
    pub patch_embedding: Conv2d,
    /// Embedding table of the positions: the class token, then one for each patch.
    pub position_embedding: Embedding,
}

impl VisionTransformer {
    /// Encodes images. Returns the pooled output of each image, `[b, width]`.
    ///
    /// `pixels` is `[b, 3, h, w]`, preprocessed by an [`ImageProcessor`](crate::image::ImageProcessor) to the
    /// config's `image_size`.
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

/// Embeds the patches of `pixels` `[b, c, h, w]` as tokens after the class token and adds positions.
///
/// `class` is `[1, 1, width]` and `positions` `[1, n + 1, width]`. Returns `[b, n + 1, width]`.
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
    assert_eq!(found, expected, "images of {width}x{height} are not of the model's size");
    Tensor::cat(vec![class.repeat_dim(0, batch), patches], 1) + positions
}
