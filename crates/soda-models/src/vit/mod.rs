//! A vision transformer (Dosovitskiy et al., arXiv 2010.11929) in the layout of DINO's checkpoints
//! (Caron et al., arXiv 2104.14294), and DINOv2's, with registers and without ([`dinov2`]).
//!
//! DINO's class token tells individuals of one kind apart, so its cosine is the measure of whether
//! a picture shows *this* mug. Mirrors transformers' `ViTModel` without the pooler.

pub mod dinov2;
mod positions;

use std::ops::RangeInclusive;
use std::path::Path;

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{LayerNorm, LayerNormConfig};
use burn::tensor::{Device, Tensor};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::clip::encoder::{Activation, Encoder, EncoderConfig};
use crate::clip::pretrained::{fields, picture_fits};
use crate::clip::vision::embed_patches;
use crate::config::{self, ConfigFile, Refusal};
use crate::error::ModelError;
use crate::weights;
use dinov2::Dinov2Config;
use positions::Kernel;

/// Keys of a `ViTModel`'s or a DINOv2's file, as (regular expression, this port's key), for
/// [`crate::weights::load_renamed`]: the layers are CLIP's under other names.
pub const RENAMED: &[(&str, &str)] = &[
    (r"^encoder\.layer\.", "encoder.layers."),
    (r"\.attention\.attention\.(q|k|v)(uery|ey|alue)\.", ".self_attn.${1}_proj."),
    (r"\.attention\.output\.dense\.", ".self_attn.out_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.(layernorm_before|norm1)\.", ".layer_norm1."),
    (r"\.(layernorm_after|norm2)\.", ".layer_norm2."),
    (r"\.layer_scale(1|2)\.lambda1$", ".layer_scale${1}"),
];

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
        picture_fits(
            [self.hidden_size, self.num_attention_heads],
            [self.image_size, self.patch_size, self.num_channels],
        )
    }
}

impl VitConfig {
    /// An untrained model.
    pub fn init(&self, device: &Device) -> VitModel {
        self.build(Parts::default(), device)
    }

    fn build(&self, Parts { layer_scale, registers }: Parts, device: &Device) -> VitModel {
        let width = self.hidden_size;
        let patch = [self.patch_size; 2];
        let patches = (self.image_size / self.patch_size).pow(2);
        let encoder = EncoderConfig {
            width,
            inner: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            norm_eps: self.layer_norm_eps,
            qkv_bias: self.qkv_bias,
            layer_scale,
        };
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
                register_tokens: registers
                    .map(|count| Param::from_tensor(Tensor::zeros([1, count, width], device))),
            },
            encoder: encoder.init(device),
            layernorm: LayerNormConfig::new(width).with_epsilon(self.layer_norm_eps).init(device),
        }
    }
}

/// What DINOv2 has and DINO has not.
#[derive(Clone, Copy, Debug, Default)]
struct Parts {
    layer_scale: bool,
    registers: Option<usize>,
}

/// Which of them a `config.json` is of.
#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    model_type: Option<String>,
}

const REGISTERS: &str = "dinov2_with_registers";

impl ConfigFile for Kind {
    const WHAT: &'static str = VitConfig::WHAT;

    const NEUTRAL: &'static [(&'static str, &'static str)] = &[];

    fn check(&self) -> Result<(), Refusal> {
        match self.model_type.as_deref() {
            None | Some("vit" | "dinov2" | REGISTERS) => Ok(()),
            Some(other) => {
                let supported = "vit (DINO), dinov2 or dinov2_with_registers";
                Err(Refusal { field: "model_type", value: format!("\"{other}\""), supported })
            }
        }
    }
}

/// Reads the DINO or the DINOv2, with registers or without, in `dir`, in transformers' layout; with it, how long the sides of the
/// pictures are that it reads.
///
/// # Errors
///
/// Files that are missing, broken or of another model.
pub fn load(dir: &Path, device: &Device) -> Result<(VitModel, RangeInclusive<usize>), ModelError> {
    let path = dir.join("config.json");
    let kind: Kind = config::read(&path)?;
    let (model, sides) = match kind.model_type.as_deref() {
        Some(kind @ ("dinov2" | REGISTERS)) => {
            let mut config: Dinov2Config = config::read(&path)?;
            if kind == REGISTERS {
                // What transformers takes for unsaid.
                config.num_register_tokens.get_or_insert(4);
            }
            (config.init(device), config.patch_size..=usize::MAX)
        }
        _ => {
            let config: VitConfig = config::read(&path)?;
            (config.init(device), config.image_size..=config.image_size)
        }
    };
    Ok((weights::load_renamed(model, &dir.join("model.safetensors"), RENAMED)?, sides))
}

/// A vision transformer.
#[derive(Module, Debug)]
pub struct VitModel {
    /// Patches and positions.
    pub embeddings: VitEmbeddings,
    /// The transformer.
    pub encoder: Encoder,
    /// After the last layer.
    pub layernorm: LayerNorm,
}

impl VitModel {
    /// The last hidden states, `[b, 1 + registers + n, width]`, of `pixels` `[b, 3, h, w]`, normalised as
    /// `preprocessor_config.json` says. Where `h` and `w` are not the size of the config, the
    /// positions are interpolated, which DINOv2 was trained for.
    pub fn forward(&self, pixels: Tensor<4>) -> Tensor<3> {
        let VitEmbeddings { cls_token, patch_embeddings, position_embeddings, register_tokens } =
            &self.embeddings;
        let patch = &patch_embeddings.projection;
        let ([_, _, height, width], [_, _, rows, columns]) = (pixels.dims(), patch.weight.dims());
        let grid = [height / rows, width / columns];
        // The model with registers was published with the other kernel.
        let kernel = if register_tokens.is_some() { Kernel::Smoothed } else { Kernel::Plain };
        let positions = positions::resample(position_embeddings.val(), grid, kernel);
        let mut x = embed_patches(patch, cls_token.val(), positions, pixels);
        if let Some(registers) = register_tokens {
            let [batch, n, _] = x.dims();
            let registers = registers.val().repeat_dim(0, batch);
            x = Tensor::cat(vec![x.clone().narrow(1, 0, 1), registers, x.narrow(1, 1, n - 1)], 1);
        }
        let x = self.encoder.forward(x, None);
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
    /// Tokens between the class token and the patches, `[1, registers, width]`; without positions.
    pub register_tokens: Option<Param<Tensor<3>>>,
}

/// Patches to tokens.
#[derive(Module, Debug)]
pub struct PatchEmbeddings {
    /// Pixels of a patch to a token.
    pub projection: Conv2d,
}
