//! CLIP's text encoder, which conditions Stable Diffusion.
//!
//! The encoder is a causal transformer over 77 tokens, and the UNet attends to its hidden states. The state
//! at the end token, which has seen the whole prompt, is the pooled output. Mirrors transformers'
//! `CLIPTextModel`.

use burn::module::Module;
use burn::nn::{EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Bool, Device, Int, Tensor};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::encoder::{Activation, Encoder, EncoderConfig};
use super::text_embeddings::TextEmbeddings;
use crate::config::bounds::{LAYERS, POSITIONS, TOKENS, WIDTH, check_epsilon};
use crate::config::pretrained::{fields, heads_fit};
use crate::config::{ConfigFile, InvalidField};
use crate::layers::project;

/// Key renames of a text encoder's file, as (regular expression, replacement), for
/// [`crate::weights::load_renamed`].
///
/// transformers 5 leaves out the prefix `text_model.` that version 4 wrote. This crate uses the longer keys,
/// since every version of transformers reads them.
pub const TEXT_KEY_RENAMES: &[(&str, &str)] =
    &[(r"^(embeddings|encoder|final_layer_norm)\.", "text_model.$1.")];

/// The class whose checkpoint has a `text_projection`.
const WITH_PROJECTION: &str = "CLIPTextModelWithProjection";

/// The width of the joint space if a config does not state it.
const DEFAULT_PROJECTION: usize = 512;

/// The end token in configs from before transformers 4.31, whatever the real one is.
const UNRELIABLE_EOS: usize = 2;

/// The `config.json` of a `CLIPTextModel`, or the `text_config` of a `CLIPModel`.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct ClipTextConfig {
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the MLPs.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Length of the longest prompt, in tokens.
    pub max_position_embeddings: usize,
    /// Activation function of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// The token at which the pooled output is read.
    pub eos_token_id: usize,
    /// Width of the projected pooled output. `None` without a projection. SDXL's second text encoder, a
    /// `CLIPTextModelWithProjection`, has one.
    pub projection_dim: Option<usize>,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
            projection_dim: None,
        }
    }
}

impl<'de> Deserialize<'de> for ClipTextConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut written = Map::deserialize(deserializer)?;
        // Every config states the width of a joint space; the class says whether there is a projection. The
        // projection of a `CLIPModel` is not part of the text encoder.
        let projects = match written.get("architectures") {
            Some(Value::Array(names)) => names.iter().any(|name| name == WITH_PROJECTION),
            _ => false,
        };
        let width = written.remove("projection_dim");
        let mut fields = fields(Value::Object(written), &[]).map_err(D::Error::custom)?;
        if projects {
            fields.insert("projection_dim".into(), width.unwrap_or(DEFAULT_PROJECTION.into()));
        }
        Self::deserialize(Value::Object(fields)).map_err(D::Error::custom)
    }
}

impl ConfigFile for ClipTextConfig {
    const DESCRIPTION: &'static str = "the text encoder's config.json";

    const NO_EFFECT: &'static [(&'static str, &'static str)] = &[];

    fn validate(&self) -> Result<(), InvalidField> {
        let refuse = |field, value: usize, supported| {
            Err(InvalidField { field, value: value.to_string(), supported })
        };
        LAYERS.check("num_hidden_layers", self.num_hidden_layers)?;
        WIDTH.check_fields(&[
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("projection_dim", self.projection_dim.unwrap_or(0)),
        ])?;
        check_epsilon("layer_norm_eps", self.layer_norm_eps)?;
        POSITIONS.check("max_position_embeddings", self.max_position_embeddings)?;
        TOKENS.check_fields(&[
            ("vocab_size", self.vocab_size),
            ("eos_token_id", self.eos_token_id),
        ])?;
        if self.vocab_size == 0 {
            return refuse("vocab_size", 0, "the number of tokens");
        }
        if !heads_fit(self.hidden_size, self.num_attention_heads) {
            let supported = "a number of heads that divides `hidden_size`";
            return refuse("num_attention_heads", self.num_attention_heads, supported);
        }
        if self.max_position_embeddings == 0 {
            return refuse("max_position_embeddings", 0, "the length of the longest prompt");
        }
        Ok(())
    }
}

impl ClipTextConfig {
    /// Makes a text encoder with random weights.
    pub fn init(&self, device: &Device) -> ClipTextModel {
        let project =
            |width| LinearConfig::new(self.hidden_size, width).with_bias(false).init(device);
        ClipTextModel {
            text_model: self.init_transformer(device),
            text_projection: self.projection_dim.map(project),
        }
    }

    /// Makes a text encoder with random weights and without the outer level of keys, as a part of a
    /// `CLIPModel`.
    pub fn init_transformer(&self, device: &Device) -> TextTransformer {
        let embedding = |entries| EmbeddingConfig::new(entries, self.hidden_size).init(device);
        let encoder = EncoderConfig {
            width: self.hidden_size,
            inner: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            norm_eps: self.layer_norm_eps,
            qkv_bias: true,
            layer_scale: false,
        };
        TextTransformer {
            embeddings: TextEmbeddings {
                token_embedding: embedding(self.vocab_size),
                position_embedding: embedding(self.max_position_embeddings),
                new_tokens: None,
            },
            encoder: encoder.init(device),
            final_layer_norm: LayerNormConfig::new(self.hidden_size)
                .with_epsilon(self.layer_norm_eps)
                .init(device),
            eos_token: self.eos_token_id,
        }
    }
}

/// A text encoder with the keys of a checkpoint of its own.
#[derive(Module, Debug)]
pub struct ClipTextModel {
    /// The transformer, one level down as in the checkpoint.
    pub text_model: TextTransformer,
    /// Projection of the pooled output into the joint space.
    pub text_projection: Option<Linear>,
}

/// The outputs of the text encoders for a batch of prompts, which diffusers calls `prompt_embeds` and
/// `pooled_prompt_embeds`.
#[derive(Debug, Clone)]
pub struct PromptEmbeds {
    /// Hidden states, one for each token, `[b, n, width]`.
    pub hidden: Tensor<3>,
    /// Pooled output, one for each prompt: `[b, width]`, or `[b, projection_dim]` if it is projected.
    pub pooled: Tensor<2>,
}

/// The hidden layer whose states condition a denoiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HiddenLayer {
    /// Layers between this layer and the last one. 0 is the last layer.
    pub clip_skip: usize,
    /// Whether the final layer norm is applied to the states. SD 1 and 2 were trained with it, SDXL without.
    pub final_norm: bool,
}

impl ClipTextModel {
    /// Encodes token `ids` `[b, n]`. Returns the last hidden states after the final norm, `[b, n, width]`.
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.text_model.forward(ids)
    }

    /// Encodes token `ids` `[b, n]`. Returns the states of `layer` and the pooled output.
    ///
    /// # Panics
    ///
    /// If the encoder has no more than `layer.clip_skip` layers.
    #[track_caller]
    pub fn encode(&self, ids: Tensor<2, Int>, layer: HiddenLayer) -> PromptEmbeds {
        let model = &self.text_model;
        let mut states = model.hidden_states(ids.clone());
        let layers = states.len() - 1;
        assert!(layer.clip_skip < layers, "skipping {} of {layers} layers", layer.clip_skip);
        let hidden = states[layers - layer.clip_skip].clone();
        let last = model.final_layer_norm.forward(states.swap_remove(layers));
        let hidden = match layer {
            HiddenLayer { clip_skip: 0, final_norm: true } => last.clone(),
            HiddenLayer { final_norm: true, .. } => model.final_layer_norm.forward(hidden),
            HiddenLayer { final_norm: false, .. } => hidden,
        };
        let pooled = model.at_end(last, ids);
        let pooled = match &self.text_projection {
            Some(layer) => project(layer, pooled),
            None => pooled,
        };
        PromptEmbeds { hidden, pooled }
    }

    /// Moves the vectors of [`NewTokens`](crate::clip::NewTokens) into the embedding table, as a checkpoint
    /// stores them.
    #[must_use]
    pub fn with_merged_tokens(mut self) -> Self {
        self.text_model.embeddings = self.text_model.embeddings.with_merged_tokens();
        self
    }
}

/// Embeddings, transformer and final norm of a text encoder.
#[derive(Module, Debug)]
pub struct TextTransformer {
    /// Token and position embeddings.
    pub embeddings: TextEmbeddings,
    /// The transformer.
    pub encoder: Encoder,
    /// Layer norm after the last layer.
    pub final_layer_norm: LayerNorm,
    /// The token at which the pooled output is read.
    pub eos_token: usize,
}

impl TextTransformer {
    /// Encodes token `ids` `[b, n]`. Returns the last hidden states after the final norm, `[b, n, width]`.
    ///
    /// # Panics
    ///
    /// If `n` exceeds the number of positions.
    #[track_caller]
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let (x, mask) = self.embed(ids);
        self.final_layer_norm.forward(self.encoder.forward(x, Some(&mask)))
    }

    /// The hidden states of `ids` `[b, n]` before the first layer and after each layer, `[b, n, width]`,
    /// without the final norm.
    #[track_caller]
    fn hidden_states(&self, ids: Tensor<2, Int>) -> Vec<Tensor<3>> {
        let (x, mask) = self.embed(ids);
        self.encoder.hidden_states(x, Some(&mask))
    }

    /// The encoder's input and its causal mask.
    #[track_caller]
    fn embed(&self, ids: Tensor<2, Int>) -> (Tensor<3>, Tensor<4, Bool>) {
        let [_, tokens] = ids.dims();
        // A token must not see the tokens after it.
        let mask = Tensor::<2, Bool>::tril_mask([tokens, tokens], 0, &ids.device());
        (self.embeddings.forward(ids), mask.unsqueeze())
    }

    /// Encodes token `ids` `[b, n]`. Returns the last hidden state at the end token of each prompt, `[b,
    /// width]`.
    #[track_caller]
    pub fn pooled(&self, ids: Tensor<2, Int>) -> Tensor<2> {
        self.at_end(self.forward(ids.clone()), ids)
    }

    /// Selects the state at the end token of each prompt, `[b, width]`, of `hidden` `[b, n, width]`.
    fn at_end(&self, hidden: Tensor<3>, ids: Tensor<2, Int>) -> Tensor<2> {
        let [batch, tokens, width] = hidden.dims();
        let end = if self.eos_token == UNRELIABLE_EOS {
            // The real end token has the largest id of the vocabulary, apart from new tokens.
            self.embeddings.known(ids.clone()).max_dim(1).expand([batch, tokens])
        } else {
            ids.full_like(self.eos_token as i64)
        };
        // The padding may consist of end tokens too, and the first one counts. It is found as a minimum,
        // since backends differ in which of several equal elements an argmax finds.
        let positions = Tensor::<1, Int>::arange(0..tokens as i64, &ids.device());
        let positions = positions.unsqueeze::<2>().expand([batch, tokens]);
        let first = positions.mask_fill(ids.not_equal(end), tokens as i64 - 1).min_dim(1);
        let index = first.reshape([batch, 1, 1]).expand([batch, 1, width]);
        hidden.gather(1, index).reshape([batch, width])
    }
}
