//! The fields that transformers' `PretrainedConfig` writes into every `config.json` beside those of the
//! network.
//!
//! They say where a file comes from, how the network was initialised and trained, and how text would be
//! generated. No forward pass reads these some seventy fields. They are removed here by name, so that a
//! config struct can refuse every other unknown field.

use serde::de::{Deserialize, Deserializer, Error};
use serde_json::{Map, Value};

use super::bounds::{LAYERS, PIXELS, POSITION_TABLE, WIDTH};
use super::file::InvalidField;

/// Fields that no forward pass of these networks reads, whatever their value.
const UNREAD: &[&str] = &[
    // The origin of the file.
    "architectures",
    "dtype",
    "finetuning_task",
    "model_type",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    // Training. Dropout has no effect, since these networks are frozen.
    "attention_dropout",
    "attention_probs_dropout_prob",
    "dropout",
    "hidden_dropout_prob",
    "initializer_factor",
    "initializer_range",
    "use_bfloat16",
    // The outputs of the Python functions, and how they store and split their work.
    "chunk_size_feed_forward",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict",
    "return_dict_in_generate",
    "tf_legacy_loss",
    "torchscript",
    "use_cache",
    // Classification heads.
    "id2label",
    "label2id",
    "problem_type",
    "task_specific_params",
    // Text generation.
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "pad_token_id",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "sep_token_id",
    "suppress_tokens",
    "temperature",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "top_k",
    "top_p",
    "typical_p",
];

/// Fields that would change the network, with the JSON value at which they have no effect.
const NO_EFFECT: &[(&str, &str)] = &[
    ("add_cross_attention", "false"),
    ("cross_attention_hidden_size", "null"),
    ("is_decoder", "false"),
    ("is_encoder_decoder", "false"),
    ("pruned_heads", "{}"),
];

/// Reads the fields that describe the network: all but [`UNREAD`], `also_unread` and those of no effect.
///
/// The config struct refuses every unknown field that remains.
pub(crate) fn fields<'de, D: Deserializer<'de>>(
    deserializer: D,
    also_unread: &[&str],
) -> Result<Map<String, Value>, D::Error> {
    let mut fields = Map::deserialize(deserializer)?;
    for (field, neutral) in NO_EFFECT {
        let neutral: Value = serde_json::from_str(neutral).map_err(D::Error::custom)?;
        if fields.get(*field) == Some(&neutral) {
            fields.remove(*field);
        }
    }
    fields.retain(|field, _| {
        let unread = |name: &&str| *name == field;
        !(UNREAD.iter().any(unread) || also_unread.iter().any(unread) || field.starts_with('_'))
    });
    Ok(fields)
}

/// Whether `width` splits evenly into `heads`, as every attention layer needs it.
pub(crate) fn heads_fit(width: usize, heads: usize) -> bool {
    heads > 0 && width > 0 && width.is_multiple_of(heads)
}

/// Checks the sizes of an image encoder: `[width, heads, layers]` and `[image, patch, channels]`.
pub(crate) fn check_vision_sizes(
    [width, heads, layers]: [usize; 3],
    [image, patch, channels]: [usize; 3],
) -> Result<(), InvalidField> {
    let refuse = |field, value: usize, supported| {
        Err(InvalidField { field, value: value.to_string(), supported })
    };
    LAYERS.check("num_hidden_layers", layers)?;
    WIDTH.check("hidden_size", width)?;
    PIXELS.check("image_size", image)?;
    if !heads_fit(width, heads) {
        let supported = "a number of heads that divides `hidden_size`";
        return refuse("num_attention_heads", heads, supported);
    }
    if patch == 0 || image < patch {
        return refuse("patch_size", patch, "a patch that fits into `image_size`");
    }
    POSITION_TABLE.check("image_size", (image / patch).pow(2) * width)?;
    if channels != 3 {
        return refuse("num_channels", channels, "3: red, green and blue");
    }
    Ok(())
}
