//! The transformer encoder of CLIP and of the vision transformers.
//!
//! ```text
//! x = x + s1 attention(norm1(x))
//! x = x + s2 fc2(act(fc1(norm2(x))))
//! ```
//!
//! The norms come before attention and MLP (Xiong et al., arXiv 2002.04745). Only DINOv2 has the layer scales
//! `s1` and `s2` (Touvron et al., arXiv 2103.17239). Mirrors transformers' `CLIPEncoder`, `ViTEncoder` and
//! `Dinov2Encoder`.

use std::f64::consts::FRAC_1_SQRT_2;

use burn::module::{Module, Param};
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::sigmoid;
use burn::tensor::{Bool, Device, Tensor};
use serde::Deserialize;
use soda_kernels::swiglu;

use crate::layers::{multi_head, project};

/// The activation function between the two layers of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x sigmoid(1.702 x)`, used by OpenAI's CLIP models.
    QuickGelu,
    /// `x Phi(x)` with the exact normal distribution, used by OpenCLIP's models and by vision transformers.
    Gelu,
    /// `silu(a) b` of the halves `a` and `b` of the last axis (Shazeer, arXiv 2002.05202), used by DINOv2's
    /// giant model.
    #[serde(skip)]
    SwiGlu,
}

impl Activation {
    /// The number of inputs for each output.
    fn inputs(self) -> usize {
        if self == Self::SwiGlu { 2 } else { 1 }
    }

    /// Applies the activation function along the last axis. `SwiGlu` halves that axis.
    pub fn apply<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::QuickGelu => x.clone() * sigmoid(x.mul_scalar(1.702)),
            // burn's gelu has the gradient of an approximation on some backends.
            Self::Gelu => {
                let gate = (x.clone() * FRAC_1_SQRT_2).erf() + 1.0;
                (x * 0.5) * gate
            }
            Self::SwiGlu => swiglu(x),
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
    /// Number of attention heads, each `width / heads` wide.
    pub heads: usize,
    /// Activation function of the MLPs.
    pub activation: Activation,
    /// Epsilon of the layer norms.
    pub norm_eps: f64,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the outputs of attention and MLP are scaled for each channel.
    pub layer_scale: bool,
}

impl EncoderConfig {
    /// Makes an encoder with random weights.
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

/// A stack of transformer layers.
#[derive(Module, Debug)]
pub struct Encoder {
    /// The layers, first to last.
    pub layers: Vec<EncoderLayer>,
}

impl Encoder {
    /// Encodes `x` `[b, n, width]`. Returns the last hidden states, `[b, n, width]`.
    ///
    /// `mask` is `[1, 1, n, n]` and true where a query must not see a key.
    pub fn forward(&self, x: Tensor<3>, mask: Option<&Tensor<4, Bool>>) -> Tensor<3> {
        self.layers.iter().fold(x, |x, layer| layer.forward(x, mask))
    }

    /// Encodes `x` as [`forward`](Self::forward) and returns the hidden states before the first layer and
    /// after each layer.
    pub fn hidden_states(&self, x: Tensor<3>, mask: Option<&Tensor<4, Bool>>) -> Vec<Tensor<3>> {
        let mut states = vec![x];
        for layer in &self.layers {
            let x = states[states.len() - 1].clone();
            states.push(layer.forward(x, mask));
        }
        states
    }
}

/// Self-attention and an MLP, each with a residual connection.
#[derive(Module, Debug)]
pub struct EncoderLayer {
    /// Self-attention.
    pub self_attn: SelfAttention,
    /// Layer norm before the attention.
    pub layer_norm1: LayerNorm,
    /// The MLP.
    pub mlp: Mlp,
    /// Layer norm before the MLP.
    pub layer_norm2: LayerNorm,
    /// Scale of the attention's output, `[width]`.
    pub layer_scale1: Option<Param<Tensor<1>>>,
    /// Scale of the MLP's output, `[width]`.
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

/// Multi-head self-attention.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Query projection.
    pub q_proj: Linear,
    /// Key projection.
    pub k_proj: Linear,
    /// Value projection.
    pub v_proj: Linear,
    /// Output projection.
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

/// Two linear layers with an activation function between them.
#[derive(Module, Debug)]
pub struct Mlp {
    /// Linear layer from `width` to the inner width.
    pub fc1: Linear,
    /// Linear layer from the inner width to `width`.
    pub fc2: Linear,
    /// Activation function between the two layers.
    #[module(skip)]
    pub activation: Activation,
}

impl Mlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        project(&self.fc2, self.activation.apply(project(&self.fc1, x)))
    }
}
