//! The block in which image and text have weights of their own, and attend over both together.
//!
//! Mirrors diffusers' `Flux2TransformerBlock`, `Flux2Attention` and `Flux2FeedForward`.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Tensor};
use soda_kernels::{rms_norm_rotary, swiglu};

use super::config::Flux2Config;
use super::modulation::LayerModulation;
use super::single_block::clamp_f16;
use crate::layers::{heads_of, multi_head, project};
use crate::rotary::RotaryEmbedding;

/// The tokens of image and text, each `[b, n, c]`.
#[derive(Debug, Clone)]
pub struct Streams {
    /// Tokens of the image.
    pub image: Tensor<3>,
    /// Tokens of the text.
    pub text: Tensor<3>,
}

/// Shift, scale and gate of attention and MLP, for image and text.
#[derive(Debug, Clone)]
pub struct DoubleModulation {
    /// Those of the image.
    pub image: [LayerModulation; 2],
    /// Those of the text.
    pub text: [LayerModulation; 2],
}

/// Joint attention and an MLP for each stream.
#[derive(Module, Debug)]
pub struct DoubleBlock {
    /// Attention of both streams.
    pub attn: JointAttention,
    /// MLP of the image.
    pub ff: GatedMlp,
    /// MLP of the text.
    pub ff_context: GatedMlp,
    /// Epsilon of the layer norms.
    pub eps: f64,
}

impl DoubleBlock {
    /// Makes a block with random weights.
    pub fn init(config: &Flux2Config, device: &Device) -> Self {
        let mlp = || GatedMlp::init(config.width(), config.mlp_width(), device);
        Self {
            attn: JointAttention::init(config, device),
            ff: mlp(),
            ff_context: mlp(),
            eps: config.eps,
        }
    }

    /// Computes the block.
    pub fn forward(
        &self,
        streams: Streams,
        modulation: &DoubleModulation,
        rotary: &RotaryEmbedding,
    ) -> Streams {
        let Streams { image, text } = streams;
        let DoubleModulation { image: [image_attn, image_mlp], text: [text_attn, text_mlp] } =
            modulation;
        let attended = self.attn.forward(
            Streams {
                image: image_attn.modulated(image.clone(), self.eps),
                text: text_attn.modulated(text.clone(), self.eps),
            },
            rotary,
        );
        let image = image_attn.add_gated(image, attended.image);
        let text = text_attn.add_gated(text, attended.text);
        let mlp = self.ff.forward(image_mlp.modulated(image.clone(), self.eps));
        let mlp_context = self.ff_context.forward(text_mlp.modulated(text.clone(), self.eps));
        Streams {
            image: image_mlp.add_gated(image, mlp),
            // diffusers clamps the text alone here.
            text: clamp_f16(text_mlp.add_gated(text, mlp_context)),
        }
    }
}

/// Attention of the tokens of both streams over all of them.
#[derive(Module, Debug)]
pub struct JointAttention {
    /// Query projection of the image.
    pub to_q: Linear,
    /// Key projection of the image.
    pub to_k: Linear,
    /// Value projection of the image.
    pub to_v: Linear,
    /// Norm of the image's queries.
    pub norm_q: RmsNorm,
    /// Norm of the image's keys.
    pub norm_k: RmsNorm,
    /// Output projection of the image and dropout. The pair gives the projection its key `to_out.0`.
    pub to_out: (Linear, Dropout),
    /// Query projection of the text.
    pub add_q_proj: Linear,
    /// Key projection of the text.
    pub add_k_proj: Linear,
    /// Value projection of the text.
    pub add_v_proj: Linear,
    /// Norm of the text's queries.
    pub norm_added_q: RmsNorm,
    /// Norm of the text's keys.
    pub norm_added_k: RmsNorm,
    /// Output projection of the text.
    pub to_add_out: Linear,
    /// Number of heads.
    pub heads: usize,
}

impl JointAttention {
    /// Makes a layer with random weights.
    pub fn init(config: &Flux2Config, device: &Device) -> Self {
        let width = config.width();
        let linear = || LinearConfig::new(width, width).with_bias(false).init(device);
        let norm =
            || RmsNormConfig::new(config.attention_head_dim).with_epsilon(config.eps).init(device);
        Self {
            to_q: linear(),
            to_k: linear(),
            to_v: linear(),
            norm_q: norm(),
            norm_k: norm(),
            to_out: (linear(), DropoutConfig::new(0.0).init()),
            add_q_proj: linear(),
            add_k_proj: linear(),
            add_v_proj: linear(),
            norm_added_q: norm(),
            norm_added_k: norm(),
            to_add_out: linear(),
            heads: config.num_attention_heads,
        }
    }

    /// Attends over `[text, image]`, in this order.
    fn forward(&self, streams: Streams, rotary: &RotaryEmbedding) -> Streams {
        let Streams { image, text } = streams;
        let (pixels, words) = (image.dims()[1], text.dims()[1]);
        let of_text = (&text, rotary.tokens(0..words));
        let of_image = (&image, rotary.tokens(words..words + pixels));
        let rotated = |norm: &RmsNorm, layer: &Linear, of: &(&Tensor<3>, RotaryEmbedding)| {
            let (tokens, rotary) = of;
            let heads = heads_of(project(layer, (*tokens).clone()), self.heads);
            rms_norm_rotary(norm, heads, rotary).reshape(tokens.shape())
        };
        let q = vec![
            rotated(&self.norm_added_q, &self.add_q_proj, &of_text),
            rotated(&self.norm_q, &self.to_q, &of_image),
        ];
        let k = vec![
            rotated(&self.norm_added_k, &self.add_k_proj, &of_text),
            rotated(&self.norm_k, &self.to_k, &of_image),
        ];
        let v = vec![project(&self.add_v_proj, text.clone()), project(&self.to_v, image.clone())];
        let [q, k, v] = [q, k, v].map(|parts| Tensor::cat(parts, 1));
        let out = multi_head(q, k, v, self.heads, None);
        Streams {
            image: project(&self.to_out.0, out.clone().narrow(1, words, pixels)),
            text: project(&self.to_add_out, out.narrow(1, 0, words)),
        }
    }
}

/// An MLP whose gate is the first half of its inner activations.
#[derive(Module, Debug)]
pub struct GatedMlp {
    /// Linear layer to gate and values, in one matrix.
    pub linear_in: Linear,
    /// Linear layer of the gated values.
    pub linear_out: Linear,
}

impl GatedMlp {
    /// Makes an MLP with random weights.
    pub fn init(width: usize, inner: usize, device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        Self { linear_in: linear(width, 2 * inner), linear_out: linear(inner, width) }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        project(&self.linear_out, swiglu(project(&self.linear_in, x)))
    }
}
