//! The transformer that CLIP's towers and the vision transformers are made of.
//!
//! ```text
//! x = x + s1 attention(norm1(x))
//! x = x + s2 fc2(act(fc1(norm2(x))))
//! ```
//!
//! Mirrors transformers' `CLIPEncoder`, `ViTEncoder` and `Dinov2Encoder`: norm before each part (Xiong et al.,
//! arXiv 2002.04745); DINOv2 alone has the scales `s1` and `s2` (Touvron et al., arXiv 2103.17239).

use std::f64::consts::FRAC_1_SQRT_2;

use burn::module::{Module, Param};
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::{sigmoid, silu};
use burn::tensor::{Bool, Device, Tensor};
use serde::Deserialize;

use crate::unet::attention::{multi_head, project};

/// The nonlinearity between the two layers of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x sigmoid(1.702 x)`: OpenAI's models.
    QuickGelu,
    /// `x Phi(x)` with the exact normal distribution: OpenCLIP's models, vision transformers.
    Gelu,
    /// `silu(a) b` of the halves `a`, `b` of the last axis (Shazeer, arXiv 2002.05202): DINOv2's giant.
    #[serde(skip)]
    SwiGlu,
}

impl Activation {
    /// Numbers that it takes for each one that it gives.
    fn inputs(self) -> usize {
        if self == Self::SwiGlu { 2 } else { 1 }
    }

    /// The nonlinearity, on the last axis.
    pub fn apply<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::QuickGelu => x.clone() * sigmoid(x.mul_scalar(1.702)),
            // burn's own has the gradient of an approximation on some backends.
            Self::Gelu => {
                let gate = (x.clone() * FRAC_1_SQRT_2).erf() + 1.0;
                (x * 0.5) * gate
            }
            Self::SwiGlu => {
                let half = x.dims()[D - 1] / 2;
                let (a, b) = (x.clone().narrow(D - 1, 0, half), x.narrow(D - 1, half, half));
                silu(a) * b
            }
        }
    }
}

/// The sizes of an encoder.
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    /// Width of the hidden states.
    pub width: usize,
    /// Width inside the MLPs.
    pub inner: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads; each is `width / heads` wide.
    pub heads: usize,
    /// Nonlinearity of the MLPs.
    pub activation: Activation,
    /// Epsilon of the layer norms.
    pub norm_eps: f64,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether what each part adds is scaled, channel by channel.
    pub layer_scale: bool,
}

impl EncoderConfig {
    /// An untrained encoder.
    pub fn init(&self, device: &Device) -> Encoder {
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let norm = || LayerNormConfig::new(self.width).with_epsilon(self.norm_eps).init(device);
        let input =
            || LinearConfig::new(self.width, self.width).with_bias(self.qkv_bias).init(device);
        let scale =
            || self.layer_scale.then(|| Param::from_tensor(Tensor::ones([self.width], device)));
        let layer = |_| EncoderLayer {
            self_attn: SelfAttention {
                q_proj: input(),
                k_proj: input(),
                v_proj: input(),
                out_proj: linear(self.width, self.width),
                heads: self.heads,
            },
            layer_norm1: norm(),
            mlp: Mlp {
                fc1: linear(self.width, self.inner * self.activation.inputs()),
                fc2: linear(self.inner, self.width),
                activation: self.activation,
            },
            layer_norm2: norm(),
            layer_scale1: scale(),
            layer_scale2: scale(),
        };
        Encoder { layers: (0..self.layers).map(layer).collect() }
    }
}

/// A stack of layers.
#[derive(Module, Debug)]
pub struct Encoder {
    /// The layers, first to last.
    pub layers: Vec<EncoderLayer>,
}

impl Encoder {
    /// `x`: `[b, n, width]`; `mask`: `[1, 1, n, n]`, true where a row must not see a column;
    /// returns `[b, n, width]`.
    pub fn forward(&self, x: Tensor<3>, mask: Option<&Tensor<4, Bool>>) -> Tensor<3> {
        self.layers.iter().fold(x, |x, layer| layer.forward(x, mask))
    }

    /// The states before the first layer and after each: one more than there are layers.
    pub fn states(&self, x: Tensor<3>, mask: Option<&Tensor<4, Bool>>) -> Vec<Tensor<3>> {
        let mut states = vec![x];
        for layer in &self.layers {
            let x = states[states.len() - 1].clone();
            states.push(layer.forward(x, mask));
        }
        states
    }
}

/// Self-attention and an MLP, each added to its input.
#[derive(Module, Debug)]
pub struct EncoderLayer {
    /// Attention of tokens over tokens.
    pub self_attn: SelfAttention,
    /// Before the attention.
    pub layer_norm1: LayerNorm,
    /// The MLP.
    pub mlp: Mlp,
    /// Before the MLP.
    pub layer_norm2: LayerNorm,
    /// Of what the attention adds, `[width]`.
    pub layer_scale1: Option<Param<Tensor<1>>>,
    /// Of what the MLP adds, `[width]`.
    pub layer_scale2: Option<Param<Tensor<1>>>,
}

impl EncoderLayer {
    fn forward(&self, x: Tensor<3>, mask: Option<&Tensor<4, Bool>>) -> Tensor<3> {
        let seen = self.self_attn.forward(self.layer_norm1.forward(x.clone()), mask);
        let x = x + scaled(seen, self.layer_scale1.as_ref());
        let thought = self.mlp.forward(self.layer_norm2.forward(x.clone()));
        x + scaled(thought, self.layer_scale2.as_ref())
    }
}

fn scaled(x: Tensor<3>, scale: Option<&Param<Tensor<1>>>) -> Tensor<3> {
    match scale {
        Some(scale) => x * scale.val().unsqueeze(),
        None => x,
    }
}

/// The projections of self-attention.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Queries.
    pub q_proj: Linear,
    /// Keys.
    pub k_proj: Linear,
    /// Values.
    pub v_proj: Linear,
    /// Output.
    pub out_proj: Linear,
    /// Number of heads.
    pub heads: usize,
}

impl SelfAttention {
    fn forward(&self, x: Tensor<3>, mask: Option<&Tensor<4, Bool>>) -> Tensor<3> {
        let q = project(&self.q_proj, x.clone());
        let k = project(&self.k_proj, x.clone());
        let v = project(&self.v_proj, x);
        project(&self.out_proj, multi_head(q, k, v, self.heads, mask))
    }
}

/// Two layers with a nonlinearity between them.
#[derive(Module, Debug)]
pub struct Mlp {
    /// Up.
    pub fc1: Linear,
    /// Down.
    pub fc2: Linear,
    /// Between them.
    #[module(skip)]
    pub activation: Activation,
}

impl Mlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        project(&self.fc2, self.activation.apply(project(&self.fc1, x)))
    }
}
