//! The vision transformer's modules and its forward pass.

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{LayerNorm, LayerNormConfig};
use burn::tensor::{Device, Tensor};

use super::config::VitConfig;
use super::positions::{self, Kernel};
use crate::clip::{Encoder, EncoderConfig, embed_patches};

/// The parts that DINOv2 has in addition to DINO.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Dinov2Parts {
    pub(super) layer_scale: bool,
    pub(super) registers: Option<usize>,
}

impl VitConfig {
    /// Makes a model with random weights.
    pub fn init(&self, device: &Device) -> VitModel {
        self.build(Dinov2Parts::default(), device)
    }

    pub(super) fn build(
        &self,
        Dinov2Parts { layer_scale, registers }: Dinov2Parts,
        device: &Device,
    ) -> VitModel {
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

/// The vision transformer of DINO or DINOv2.
#[derive(Module, Debug)]
pub struct VitModel {
    /// Patch and position embeddings.
    pub embeddings: VitEmbeddings,
    /// The transformer.
    pub encoder: Encoder,
    /// Layer norm after the last layer.
    pub layernorm: LayerNorm,
}

impl VitModel {
    /// Encodes images. Returns the last hidden states, `[b, 1 + registers + n, width]` for `n` patches.
    ///
    /// `pixels` is `[b, 3, h, w]`, preprocessed by an [`ImageProcessor`](crate::image::ImageProcessor). If
    /// `h` and `w` differ from the config's size, the positions are interpolated. DINOv2 was trained for
    /// that.
    pub fn forward(&self, pixels: Tensor<4>) -> Tensor<3> {
        let VitEmbeddings { cls_token, patch_embeddings, position_embeddings, register_tokens } =
            &self.embeddings;
        let patch = &patch_embeddings.projection;
        let ([_, _, height, width], [_, _, rows, columns]) = (pixels.dims(), patch.weight.dims());
        let grid = [height / rows, width / columns];
        // The model with registers was published with the antialiasing kernel.
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

    /// Encodes images. Returns the class token's last hidden state, `[b, width]`. The arguments are those of
    /// [`VitModel::forward`].
    pub fn embedding(&self, pixels: Tensor<4>) -> Tensor<2> {
        self.forward(pixels).narrow(1, 0, 1).squeeze_dim(1)
    }
}

/// Patch and position embeddings.
#[derive(Module, Debug)]
pub struct VitEmbeddings {
    /// The class token, `[1, 1, width]`.
    pub cls_token: Param<Tensor<3>>,
    /// Patch embeddings.
    pub patch_embeddings: PatchEmbeddings,
    /// Position embeddings of the class token and of `n` patches, `[1, n + 1, width]`.
    pub position_embeddings: Param<Tensor<3>>,
    /// Registers, `[1, registers, width]`: tokens between class token and patches, without positions.
    pub register_tokens: Option<Param<Tensor<3>>>,
}

/// Patch embeddings.
#[derive(Module, Debug)]
pub struct PatchEmbeddings {
    /// Convolution from the pixels of a patch to a token.
    pub projection: Conv2d,
}
