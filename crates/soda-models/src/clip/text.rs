//! CLIP's text encoder: the condition of Stable Diffusion.
//!
//! A causal transformer over 77 tokens. The UNet attends to its last hidden states; the state at
//! the end token, which has seen the whole prompt, is CLIP's summary of it. Mirrors transformers'
//! `CLIPTextModel`.

use burn::module::Module;
use burn::nn::{EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Bool, Device, Int, Tensor};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::embeddings::TextEmbeddings;
use super::encoder::{Activation, Encoder, EncoderConfig};
use super::pretrained::{fields, heads_fit};
use crate::config::{ConfigFile, Refusal};
use crate::unet::attention::project;

/// Keys of a text encoder's file, as (regular expression, this port's key), for
/// [`crate::weights::load_renamed`]: transformers 5 leaves out the prefix that version 4 wrote.
/// The longer spelling is the port's, since every version of transformers reads it.
pub const RENAMED: &[(&str, &str)] =
    &[(r"^(embeddings|encoder|final_layer_norm)\.", "text_model.$1.")];

/// The class whose checkpoint has a `text_projection`.
const WITH_PROJECTION: &str = "CLIPTextModelWithProjection";

/// The width of the joint space where a config leaves it out.
const DEFAULT_PROJECTION: usize = 512;

/// What configs from before transformers 4.31 call the end token, whatever it really is.
const UNRELIABLE_EOS: usize = 2;

/// The `config.json` of a `CLIPTextModel`, or the `text_config` of a `CLIPModel`.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct ClipTextConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the MLPs.
    pub intermediate_size: usize,
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
    /// Width of the space that the pooled output is projected to, if it is: a
    /// `CLIPTextModelWithProjection`, as SDXL's second text encoder.
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
        // Every config has the width of a joint space; the class says whether there is one. That
        // of a `CLIPModel` is not the text encoder's own.
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
    const WHAT: &'static str = "the text encoder's config.json";

    const NEUTRAL: &'static [(&'static str, &'static str)] = &[];

    fn check(&self) -> Result<(), Refusal> {
        let refuse = |field, value: usize, supported| {
            Err(Refusal { field, value: value.to_string(), supported })
        };
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
    /// An untrained text encoder.
    pub fn init(&self, device: &Device) -> ClipTextModel {
        let project =
            |width| LinearConfig::new(self.hidden_size, width).with_bias(false).init(device);
        ClipTextModel {
            text_model: self.init_transformer(device),
            text_projection: self.projection_dim.map(project),
        }
    }

    /// An untrained text encoder without the outer level of keys, as part of a `CLIPModel`.
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

/// A text encoder as a checkpoint of its own.
#[derive(Module, Debug)]
pub struct ClipTextModel {
    /// All of it, one level down, as in the checkpoint.
    pub text_model: TextTransformer,
    /// The summary of a prompt into the joint space.
    pub text_projection: Option<Linear>,
}

/// What a text encoder says about prompts.
#[derive(Debug, Clone)]
pub struct TextStates {
    /// One state for each token, `[b, n, width]`.
    pub hidden: Tensor<3>,
    /// The summary of each prompt, `[b, width]`, or projected, `[b, projection_dim]`.
    pub pooled: Tensor<2>,
}

/// Which hidden states a denoiser was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// How many layers before the last.
    pub skip: usize,
    /// Whether the norm after the last layer is applied to them: by SD, not by SDXL.
    pub normed: bool,
}

impl ClipTextModel {
    /// The last hidden states of `ids` `[b, n]`: `[b, n, width]`.
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.text_model.forward(ids)
    }

    /// States and summaries of prompts, from their `ids` `[b, n]`.
    ///
    /// # Panics
    ///
    /// If there are no more than `layer.skip` layers.
    #[track_caller]
    pub fn encode(&self, ids: Tensor<2, Int>, layer: Layer) -> TextStates {
        let model = &self.text_model;
        let mut states = model.states(ids.clone());
        let layers = states.len() - 1;
        assert!(layer.skip < layers, "skipping {} of {layers} layers", layer.skip);
        let hidden = states[layers - layer.skip].clone();
        let last = model.final_layer_norm.forward(states.swap_remove(layers));
        let hidden = match layer {
            Layer { skip: 0, normed: true } => last.clone(),
            Layer { normed: true, .. } => model.final_layer_norm.forward(hidden),
            Layer { normed: false, .. } => hidden,
        };
        let pooled = model.at_end(last, ids);
        let pooled = match &self.text_projection {
            Some(layer) => project(layer, pooled),
            None => pooled,
        };
        TextStates { hidden, pooled }
    }

    /// The same with new tokens in the table of all, as a checkpoint has them.
    #[must_use]
    pub fn with_one_table(mut self) -> Self {
        self.text_model.embeddings = self.text_model.embeddings.with_one_table();
        self
    }
}

/// Embeddings, transformer, norm.
#[derive(Module, Debug)]
pub struct TextTransformer {
    /// Tokens and positions.
    pub embeddings: TextEmbeddings,
    /// The transformer.
    pub encoder: Encoder,
    /// After the last layer.
    pub final_layer_norm: LayerNorm,
    /// The token at which the pooled output is read.
    pub eos_token: usize,
}

impl TextTransformer {
    /// The last hidden states of `ids` `[b, n]`: `[b, n, width]`.
    ///
    /// # Panics
    ///
    /// If `n` is more than the positions that the model has.
    #[track_caller]
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let (x, mask) = self.embed(ids);
        self.final_layer_norm.forward(self.encoder.forward(x, Some(&mask)))
    }

    /// The states of `ids` `[b, n]` before the first layer and after each, `[b, n, width]`, all
    /// of them without the last norm.
    #[track_caller]
    fn states(&self, ids: Tensor<2, Int>) -> Vec<Tensor<3>> {
        let (x, mask) = self.embed(ids);
        self.encoder.states(x, Some(&mask))
    }

    /// The encoder's input and mask.
    #[track_caller]
    fn embed(&self, ids: Tensor<2, Int>) -> (Tensor<3>, Tensor<4, Bool>) {
        let [_, tokens] = ids.dims();
        // A token must not see the tokens after it.
        let mask = Tensor::<2, Bool>::tril_mask([tokens, tokens], 0, &ids.device());
        (self.embeddings.forward(ids), mask.unsqueeze())
    }

    /// The hidden state at the end of each prompt, `[b, width]`, from its `ids` `[b, n]`.
    #[track_caller]
    pub fn pooled(&self, ids: Tensor<2, Int>) -> Tensor<2> {
        self.at_end(self.forward(ids.clone()), ids)
    }

    /// The one of `hidden` `[b, n, width]` at the end of each prompt, `[b, width]`.
    fn at_end(&self, hidden: Tensor<3>, ids: Tensor<2, Int>) -> Tensor<2> {
        let [batch, tokens, width] = hidden.dims();
        let end = if self.eos_token == UNRELIABLE_EOS {
            // The real end token is the last of the vocabulary, so the largest id there is, but for new ones.
            self.embeddings.known(ids.clone()).max_dim(1).expand([batch, tokens])
        } else {
            ids.full_like(self.eos_token as i64)
        };
        // The padding may be end tokens too: the first one counts. Spelled as a minimum, since
        // which of several equal elements an argmax finds is up to the backend.
        let positions = Tensor::<1, Int>::arange(0..tokens as i64, &ids.device());
        let positions = positions.unsqueeze::<2>().expand([batch, tokens]);
        let first = positions.mask_fill(ids.not_equal(end), tokens as i64 - 1).min_dim(1);
        let index = first.reshape([batch, 1, 1]).expand([batch, 1, width]);
        hidden.gather(1, index).reshape([batch, width])
    }
}
