//! The transformer of the UNet: pixels as tokens, self-attention, cross-attention to the text and a gated
//! feed-forward layer, each with a residual connection.
//!
//! Mirrors diffusers' `Transformer2DModel`, `BasicTransformerBlock` and `FeedForward` with `GEGLU` (arXiv
//! 2002.05202).

use burn::module::Module;
use burn::nn::{
    Dropout, DropoutConfig, GroupNorm, GroupNormConfig, LayerNorm, LayerNormConfig, Linear,
    LinearConfig,
};
use burn::tensor::{Device, Tensor};
use soda_kernels::{geglu_with_bias, group_norm, layer_norm, linear_deferred};

use crate::layers::project_residual;
use crate::unet::attention::{Attention, AttentionConfig};
use crate::unet::projection::Projection;

/// Epsilon of the layer norms, a constant in diffusers.
const NORM_EPS: f64 = 1e-5;

/// The sizes of a transformer.
#[derive(Debug, Clone)]
pub struct TransformerConfig {
    /// Channels of the feature map and width of the tokens.
    pub channels: usize,
    /// Width of the text's hidden states.
    pub context: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Groups of the group norm.
    pub groups: usize,
    /// Whether the projections are linear layers. Otherwise they are 1x1 convolutions.
    pub linear: bool,
    /// Whether attention scores are computed in f32.
    pub upcast: bool,
}

impl TransformerConfig {
    /// Makes a transformer with random weights.
    pub fn init(&self, device: &Device) -> SpatialTransformer {
        let project = || Projection::init(self.channels, self.linear, device);
        SpatialTransformer {
            // A constant in diffusers, apart from the config's `norm_eps`.
            norm: GroupNormConfig::new(self.groups, self.channels).with_epsilon(1e-6).init(device),
            proj_in: project(),
            transformer_blocks: (0..self.layers).map(|_| self.block(device)).collect(),
            proj_out: project(),
        }
    }

    fn block(&self, device: &Device) -> TransformerBlock {
        let norm = || LayerNormConfig::new(self.channels).with_epsilon(NORM_EPS).init(device);
        let attention = |context| {
            let (width, heads, upcast) = (self.channels, self.heads, self.upcast);
            AttentionConfig { width, context, heads, upcast }.init(device)
        };
        TransformerBlock {
            norm1: norm(),
            attn1: attention(self.channels),
            norm2: norm(),
            attn2: attention(self.context),
            norm3: norm(),
            ff: FeedForward::init(self.channels, device),
        }
    }
}

/// Transformer blocks between two pointwise projections, with a residual connection.
#[derive(Module, Debug)]
pub struct SpatialTransformer {
    /// Group norm of the input.
    pub norm: GroupNorm,
    /// Projection before the blocks.
    pub proj_in: Projection,
    /// The transformer blocks.
    pub transformer_blocks: Vec<TransformerBlock>,
    /// Projection after the blocks.
    pub proj_out: Projection,
}

impl SpatialTransformer {
    /// Computes the transformer for `x` `[b, c, h, w]` and `text` `[b, m, context]`. Returns `[b, c, h, w]`.
    pub fn forward(&self, x: Tensor<4>, text: &Tensor<3>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let normed = group_norm(&self.norm, x.clone(), false);
        let tokens =
            |map: Tensor<4>| map.permute([0, 2, 3, 1]).reshape([batch, height * width, channels]);
        let mut hidden = self.proj_in.forward(tokens(normed), None);
        for block in &self.transformer_blocks {
            hidden = block.forward(hidden, text);
        }
        let hidden = self.proj_out.forward(hidden, Some(tokens(x)));
        hidden.reshape([batch, height, width, channels]).permute([0, 3, 1, 2])
    }
}

/// Self-attention, cross-attention and feed-forward layer, each with a residual connection.
#[derive(Module, Debug)]
pub struct TransformerBlock {
    /// Layer norm before self-attention.
    pub norm1: LayerNorm,
    /// Self-attention.
    pub attn1: Attention,
    /// Layer norm before cross-attention.
    pub norm2: LayerNorm,
    /// Cross-attention to the text.
    pub attn2: Attention,
    /// Layer norm before the feed-forward layer.
    pub norm3: LayerNorm,
    /// Feed-forward layer.
    pub ff: FeedForward,
}

impl TransformerBlock {
    /// Computes the block for `x` `[b, n, c]` and `text` `[b, m, context]`. Returns `[b, n, c]`.
    pub fn forward(&self, x: Tensor<3>, text: &Tensor<3>) -> Tensor<3> {
        let normed = layer_norm(&self.norm1, NORM_EPS, x.clone());
        let x = self.attn1.forward(normed.clone(), normed, x);
        let x = self.attn2.forward(layer_norm(&self.norm2, NORM_EPS, x.clone()), text.clone(), x);
        self.ff.forward(layer_norm(&self.norm3, NORM_EPS, x.clone()), x)
    }
}

/// The gated feed-forward layer, four times as wide inside.
#[derive(Module, Debug)]
pub struct FeedForward {
    /// GEGLU projection, dropout and linear layer, with the keys `net.0.proj` and `net.2`.
    pub net: (GeGlu, Dropout, Linear),
}

impl FeedForward {
    /// Makes a layer with random weights.
    pub fn init(width: usize, device: &Device) -> Self {
        let inner = 4 * width;
        let gated = GeGlu { proj: LinearConfig::new(width, 2 * inner).init(device) };
        let out = LinearConfig::new(inner, width).init(device);
        Self { net: (gated, DropoutConfig::new(0.0).init(), out) }
    }

    /// Computes the layer for `x` `[b, n, c]` and adds `residual` `[b, n, c]`. Returns `[b, n, c]`.
    pub fn forward(&self, x: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        project_residual(&self.net.2, self.net.0.forward(x), Some(residual))
    }
}

/// A linear layer whose second half gates the first: `a * gelu(b)`.
#[derive(Module, Debug)]
pub struct GeGlu {
    /// Linear layer with both halves in one matrix.
    pub proj: Linear,
}

impl GeGlu {
    /// Maps `[b, n, c]` to `[b, n, 4c]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let bias = self.proj.bias.as_ref().map(|bias| bias.val());
        geglu_with_bias(linear_deferred(x, || self.proj.weight.val(), None), bias)
    }
}
