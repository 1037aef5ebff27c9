//! The `config.json` of a Qwen3 model, and the hidden states that are read of it.

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::config::bounds::{LAYERS, ROTARY_POSITIONS, TOKENS, WIDTH, check_epsilon};
use crate::config::pretrained::fields;
use crate::config::{ConfigFile, InvalidField};
use crate::error::ModelError;

/// Fields that no forward pass reads, beside those of all models of transformers. The window of the
/// attention is off if `use_sliding_window` is.
const UNREAD: &[&str] = &["eos_token_id", "max_window_layers", "sliding_window"];

/// The largest base of the rotary frequencies.
const MOST_THETA: f64 = 1e12;

/// The kind of attention of every layer.
const FULL_ATTENTION: &str = "full_attention";

/// The `config.json` of a `Qwen3ForCausalLM` or a `Qwen3Model`. The defaults are transformers'.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct Qwen3Config {
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the MLPs.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of heads of the queries.
    pub num_attention_heads: usize,
    /// Number of heads of the keys and values. `None` for as many as the queries have.
    pub num_key_value_heads: Option<usize>,
    /// Width of a head.
    pub head_dim: usize,
    /// Length of the longest text that the model was trained on, in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// The rotary position embedding.
    pub rope_parameters: RopeParameters,
    /// The kind of attention of each layer. `None` for full attention.
    pub layer_types: Option<Vec<String>>,
}

/// The settings of the rotary position embedding.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeParameters {
    /// The base of the frequencies.
    pub rope_theta: f64,
    /// How the frequencies are scaled for long texts.
    #[serde(default)]
    pub rope_type: RopeType,
}

/// How the frequencies of the rotary position embedding are scaled for long texts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeType {
    /// Not at all.
    #[default]
    Default,
}

impl Default for Qwen3Config {
    fn default() -> Self {
        Self {
            vocab_size: 151_936,
            hidden_size: 4096,
            intermediate_size: 22_016,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: Some(32),
            head_dim: 128,
            max_position_embeddings: 32_768,
            rms_norm_eps: 1e-6,
            rope_parameters: RopeParameters { rope_theta: 10_000.0, rope_type: RopeType::Default },
            layer_types: None,
        }
    }
}

impl<'de> Deserialize<'de> for Qwen3Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = fields(deserializer, UNREAD)?;
        Self::deserialize(Value::Object(fields)).map_err(D::Error::custom)
    }
}

impl ConfigFile for Qwen3Config {
    const DESCRIPTION: &'static str = "the text encoder's config.json";

    const NO_EFFECT: &'static [(&'static str, &'static str)] = &[
        ("attention_bias", "false"),
        ("hidden_act", "\"silu\""),
        ("rope_scaling", "null"),
        ("use_sliding_window", "false"),
    ];

    fn prepare(fields: &mut Map<String, Value>) -> Result<(), InvalidField> {
        if let Some(kind) = fields.get("model_type").filter(|kind| **kind != json!("qwen3")) {
            let supported = "\"qwen3\": the text encoder of another family is not read";
            return Err(InvalidField { field: "model_type", value: kind.to_string(), supported });
        }
        // transformers 4 writes the base beside the other fields. The `rope_parameters` of version 5 win.
        if let Some(theta) = fields.remove("rope_theta")
            && fields.get("rope_parameters").is_none_or(Value::is_null)
        {
            fields.insert("rope_parameters".to_owned(), json!({ "rope_theta": theta }));
        }
        if fields.get("rope_parameters") == Some(&Value::Null) {
            fields.remove("rope_parameters");
        }
        Ok(())
    }

    fn validate(&self) -> Result<(), InvalidField> {
        let refuse =
            |field, value: String, supported| Err(InvalidField { field, value, supported });
        LAYERS.check("num_hidden_layers", self.num_hidden_layers)?;
        TOKENS.check("vocab_size", self.vocab_size)?;
        ROTARY_POSITIONS.check("max_position_embeddings", self.max_position_embeddings)?;
        for (field, width) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("head_dim", self.head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.key_value_heads()),
        ] {
            WIDTH.check(field, width)?;
            if width == 0 {
                return refuse(field, "0".to_owned(), "a positive number");
            }
        }
        for (field, count) in [
            ("num_hidden_layers", self.num_hidden_layers),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if count == 0 {
                return refuse(field, "0".to_owned(), "a positive number");
            }
        }
        if !self.head_dim.is_multiple_of(2) {
            let supported = "an even number, since pairs of channels are rotated";
            return refuse("head_dim", self.head_dim.to_string(), supported);
        }
        WIDTH.check("head_dim", self.head_dim.saturating_mul(self.num_attention_heads))?;
        let shared = self.key_value_heads();
        if !self.num_attention_heads.is_multiple_of(shared) {
            let supported = "a number that divides `num_attention_heads`";
            return refuse("num_key_value_heads", shared.to_string(), supported);
        }
        check_epsilon("rms_norm_eps", self.rms_norm_eps)?;
        let theta = self.rope_parameters.rope_theta;
        if !(1.0..=MOST_THETA).contains(&theta) {
            return refuse("rope_theta", theta.to_string(), "a number from 1 to 1e12");
        }
        if let Some(types) = &self.layer_types {
            if let Some(other) = types.iter().find(|kind| *kind != FULL_ATTENTION) {
                return refuse("layer_types", format!("{other:?}"), "full_attention in each layer");
            }
            if types.len() != self.num_hidden_layers {
                let value = format!("{} kinds", types.len());
                return refuse("layer_types", value, "as many as `num_hidden_layers`");
            }
        }
        Ok(())
    }
}

/// The hidden states that are read, in the order in which they are stacked.
///
/// State 0 is the embedding of the tokens and state `i` follows layer `i`, counted from 1. The last one is
/// normalised. transformers calls them `hidden_states`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HiddenStates(Vec<usize>);

impl HiddenStates {
    /// The states that FLUX.2 klein reads. Some scripts train it on 10, 20 and 30.
    pub const FLUX2_KLEIN: &'static [i64] = &[9, 18, 27];

    /// The state that Z-Image reads: the one before the last layer.
    pub const Z_IMAGE: &'static [i64] = &[-2];

    /// The indices of the states, each at most the number of layers.
    pub fn indices(&self) -> &[usize] {
        &self.0
    }

    /// The number of layers that must run.
    pub fn layers(&self) -> usize {
        self.0.iter().copied().max().unwrap_or(0)
    }
}

impl Qwen3Config {
    /// Selects hidden states by their indices. Negative ones count from the last state, -1.
    ///
    /// # Errors
    ///
    /// [`ModelError::InvalidRequest`] for an index that the model does not have, and for no index at all.
    pub fn hidden_states(&self, indices: &[i64]) -> Result<HiddenStates, ModelError> {
        let layers = self.num_hidden_layers as i64;
        let refuse = |value: String| ModelError::InvalidRequest {
            field: "text_encoder_out_layers",
            value,
            expected: format!(
                "this text encoder has the hidden states 0 to {layers}, or -1 to {} from the last",
                -layers - 1
            ),
        };
        if indices.is_empty() || indices.len() > LAYERS.most() {
            return Err(refuse(format!("{} numbers", indices.len())));
        }
        let resolve = |index: &i64| {
            let from_start = if *index < 0 { index.saturating_add(layers + 1) } else { *index };
            match (0..=layers).contains(&from_start) {
                true => Ok(from_start as usize),
                false => Err(refuse(index.to_string())),
            }
        };
        indices.iter().map(resolve).collect::<Result<_, _>>().map(HiddenStates)
    }

    /// The number of heads of the keys and values.
    pub(super) fn key_value_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }
}
