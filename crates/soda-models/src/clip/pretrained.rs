//! What transformers' `PretrainedConfig` writes into every `config.json` beside the network.
//!
//! Where a file comes from, how it was initialised and trained, and the settings of a text
//! generator that CLIP never was: some seventy fields, which no forward pass reads. They are taken
//! out here by name, so that a config struct can refuse every other field that it does not know.

use serde::de::{Deserialize, Deserializer, Error};
use serde_json::{Map, Value};

use crate::config::Refusal;

/// Fields that no forward pass of these networks reads, whatever they say.
const UNREAD: &[&str] = &[
    // Where the file comes from.
    "architectures",
    "dtype",
    "finetuning_task",
    "model_type",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    // How it was trained. Dropout is for training, and these networks are frozen.
    "attention_dropout",
    "attention_probs_dropout_prob",
    "dropout",
    "hidden_dropout_prob",
    "initializer_factor",
    "initializer_range",
    "use_bfloat16",
    // What Python returns, and how it stores and splits its work.
    "chunk_size_feed_forward",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict",
    "return_dict_in_generate",
    "tf_legacy_loss",
    "torchscript",
    "use_cache",
    // Heads that classify.
    "id2label",
    "label2id",
    "problem_type",
    "task_specific_params",
    // The generation of text.
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

/// Fields that would change the network, with the JSON value at which they do not.
const NEUTRAL: &[(&str, &str)] = &[
    ("add_cross_attention", "false"),
    ("cross_attention_hidden_size", "null"),
    ("is_decoder", "false"),
    ("is_encoder_decoder", "false"),
    ("pruned_heads", "{}"),
];

/// The fields that describe the network: all but [`UNREAD`], `also_unread` and neutral ones.
///
/// One that is left over here is refused by the config struct, by its name.
pub(crate) fn fields<'de, D: Deserializer<'de>>(
    deserializer: D,
    also_unread: &[&str],
) -> Result<Map<String, Value>, D::Error> {
    let mut fields = Map::deserialize(deserializer)?;
    for (field, neutral) in NEUTRAL {
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

/// Whether `width` splits into `heads`; every attention layer needs it.
pub(crate) fn heads_fit(width: usize, heads: usize) -> bool {
    heads > 0 && width > 0 && width.is_multiple_of(heads)
}

/// Whether a picture encoder's sizes make sense: [width, heads], [picture, patch, channels].
pub(crate) fn picture_fits(
    [width, heads]: [usize; 2],
    [picture, patch, channels]: [usize; 3],
) -> Result<(), Refusal> {
    let refuse = |field, value: usize, supported| {
        Err(Refusal { field, value: value.to_string(), supported })
    };
    if !heads_fit(width, heads) {
        let supported = "a number of heads that divides `hidden_size`";
        return refuse("num_attention_heads", heads, supported);
    }
    if patch == 0 || picture < patch {
        return refuse("patch_size", patch, "a patch that fits into `image_size`");
    }
    if channels != 3 {
        return refuse("num_channels", channels, "3: red, green and blue");
    }
    Ok(())
}
