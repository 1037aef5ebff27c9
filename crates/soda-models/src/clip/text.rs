//! CLIP's text encoder: the condition of Stable Diffusion.
//!
//! A causal transformer over 77 tokens. The UNet attends to its last hidden states; the state at
//! the end token, which has seen the whole prompt, is CLIP's summary of it. Mirrors transformers'
//! `CLIPTextModel`.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig};
use burn::tensor::{Bool, Device, Int, Tensor};
use serde::Deserialize;

use super::encoder::{Activation, Encoder, EncoderConfig};
use crate::config::{ConfigFile, Refusal};

/// Keys of a text encoder's file, as (regular expression, this port's key), for
/// [`crate::weights::load_renamed`]: transformers 5 leaves out the prefix that version 4 writes.
pub const RENAMED: &[(&str, &str)] =
    &[(r"^(embeddings|encoder|final_layer_norm)\.", "text_model.$1.")];

/// The end token of configs from before transformers 4.32, which all say 2 whatever it is.
const UNRELIABLE_EOS: usize = 2;

/// The fields of a `CLIPTextModel` that this port honours.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipTextConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the MLPs.
    pub intermediate_size: usize,
    /// Width of the joint space; a text encoder on its own has no projection and ignores it.
    pub projection_dim: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Longest prompt in tokens.
    pub max_position_embeddings: usize,
    /// Nonlinearity of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// The token at which the pooled output is read.
    pub eos_token_id: usize,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}
