//! Loading a text encoder from a directory in transformers' layout.

use std::collections::BTreeSet;
use std::path::Path;

use burn::tensor::{Device, FloatDType};

use super::config::{HiddenStates, Qwen3Config};
use super::model::Qwen3TextModel;
use crate::error::ModelError;
use crate::weights::{Checkpoint, WeightPrecision};

/// Key renames of a `Qwen3Model`'s file, as (regular expression, replacement). A `Qwen3ForCausalLM` has the
/// longer keys.
const KEY_RENAMES: &[(&str, &str)] = &[(r"^(embed_tokens|layers|norm)\.", "model.$1.")];

/// The names of the weights of a layer.
const LAYER: &[&str] = &[
    "input_layernorm",
    "mlp.down_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "post_attention_layernorm",
    "self_attn.k_norm",
    "self_attn.k_proj",
    "self_attn.o_proj",
    "self_attn.q_norm",
    "self_attn.q_proj",
    "self_attn.v_proj",
];

/// Loads the part of a Qwen3 model that `states` need from `dir`, and freezes it.
///
/// `variant` selects weight files such as `fp16`. The weights may be in one file or in several with an index.
/// Those of higher layers and of the head that predicts words are not read.
///
/// ```no_run
/// use std::path::Path;
///
/// use burn::tensor::{Device, FloatDType};
/// use soda_models::qwen3::{self, HiddenStates, Qwen3Config};
/// use soda_models::{ModelError, config};
///
/// let dir = Path::new("model/text_encoder");
/// let config: Qwen3Config = config::read(&dir.join("config.json"))?;
/// let states = config.hidden_states(HiddenStates::FLUX2_KLEIN)?;
/// let encoder =
///     qwen3::load(dir, &config, &states, FloatDType::BF16, None, &Device::default())?;
/// # Ok::<(), ModelError>(())
/// ```
///
/// # Errors
///
/// [`ModelError`] for files that are missing or broken, and for a key that is missing or that no Qwen3 model
/// of this `config` has.
pub fn load(
    dir: &Path,
    config: &Qwen3Config,
    states: &HiddenStates,
    dtype: FloatDType,
    variant: Option<&str>,
    device: &Device,
) -> Result<Qwen3TextModel, ModelError> {
    let checkpoint = Checkpoint::find(dir, "model", variant)?;
    load_opened(checkpoint, config, states, &dtype.into(), device)
}

/// Loads open weight files as [`load`] does.
pub(crate) fn load_opened(
    checkpoint: Checkpoint,
    config: &Qwen3Config,
    states: &HiddenStates,
    precision: &WeightPrecision,
    device: &Device,
) -> Result<Qwen3TextModel, ModelError> {
    let mut checkpoint = checkpoint.with_renamed_keys(KEY_RENAMES);
    let skipped = skipped(config, states);
    checkpoint.entries.retain(|key, _| !skipped.contains(key));
    checkpoint.load_into_mixed(config.init(states, device), precision)
}

/// The keys of a whole model that `states` do not need. Any other key is the network's, or refused.
fn skipped(config: &Qwen3Config, states: &HiddenStates) -> BTreeSet<String> {
    let layers = states.layers()..config.num_hidden_layers;
    let norm = (!layers.is_empty()).then(|| "model.norm.weight".to_owned());
    let of_layer =
        |index| LAYER.iter().map(move |name| format!("model.layers.{index}.{name}.weight"));
    // The head may be the embedding again, and a file may hold it twice.
    layers.flat_map(of_layer).chain(norm).chain(["lm_head.weight".to_owned()]).collect()
}
