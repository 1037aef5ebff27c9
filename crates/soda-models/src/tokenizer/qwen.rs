//! Qwen's tokenizer: chats to token ids by byte-pair encoding of bytes, as transformers' `Qwen2Tokenizer`.
//!
//! A prompt is put into a chat ([`Thinking`]), normalised to NFC and split into words. The bytes of each word
//! are joined to tokens. A special token that a prompt spells, such as `<|im_end|>`, is that token, as in
//! transformers. The ids are cut or padded on the right.

use std::path::Path;

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use serde_json::{Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::PostProcessorWrapper;

use super::chat_template::{self, Thinking, chat};
use super::files::{MOST_LENGTH, check_model, from_tokenizer_json, read_json, refuse};
use crate::error::ModelError;
use crate::qwen3::Qwen3Config;

/// The pattern of a word.
const WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The padding token of a tokenizer that names none.
const PAD: &str = "<|endoftext|>";

/// Settings of a `tokenizer_config.json` that are not implemented, each with the value that has no effect.
const NO_EFFECT: &[(&str, &str)] = &[
    ("add_bos_token", "false"),
    ("add_eos_token", "false"),
    ("add_prefix_space", "false"),
    ("padding_side", "\"right\""),
    ("split_special_tokens", "false"),
    ("truncation_side", "\"right\""),
];

/// The token ids of one prompt, before the padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QwenEncoding {
    /// The ids of the chat, at most as many as were asked for.
    pub ids: Vec<u32>,
    /// Whether the chat was too long, so that its end is not in `ids`.
    pub truncated: bool,
}

/// The token ids of prompts, padded on the right to one length.
#[derive(Debug, Clone)]
pub struct PaddedPrompts {
    /// The ids, `[b, n]`.
    pub ids: Tensor<2, Int>,
    /// True where `ids` has a token of the chat and false where it has padding, `[b, n]`.
    pub mask: Tensor<2, Bool>,
}

/// Qwen's tokenizer. Its ids equal those of transformers' `Qwen2Tokenizer`.
#[derive(Debug, Clone)]
pub struct QwenTokenizer {
    inner: tokenizers::Tokenizer,
    pad: u32,
    max_length: usize,
}

impl QwenTokenizer {
    /// The number of tokens that diffusers' pipelines pad prompts to.
    pub const PIPELINE_LENGTH: usize = 512;

    /// Loads a tokenizer from `dir`, which has a `tokenizer.json`, a `tokenizer_config.json` and the chat
    /// template in one of two places.
    ///
    /// # Errors
    ///
    /// [`ModelError`] for a file that is missing or broken, for a tokenizer that splits texts otherwise than
    /// Qwen's, and for a chat template of another family.
    pub fn from_dir(dir: &Path) -> Result<Self, ModelError> {
        std::fs::metadata(dir).map_err(|e| ModelError::io(dir, "a tokenizer's directory", e))?;
        let path = dir.join("tokenizer_config.json");
        let config = read_json(&path)?;
        for (field, neutral) in NO_EFFECT {
            let value = config[field].to_string();
            if !["null", neutral].contains(&value.as_str()) {
                return Err(refuse(&path, format!("`{field}` is {value}: set it to {neutral}")));
            }
        }
        chat_template::check(dir, &config)?;
        let mut inner = from_tokenizer_json(&dir.join("tokenizer.json"), check_tokenizer)?;
        check_model(dir, &inner)?;
        // Padding and truncation happen below. A file that also did them would hide that a prompt was cut.
        inner.with_post_processor(None::<PostProcessorWrapper>);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| refuse(dir, e))?;
        check_added(&inner, &config["added_tokens_decoder"]).map_err(|e| refuse(&path, e))?;

        let pad = pad_token(dir, &config)?;
        let pad = inner
            .token_to_id(&pad)
            .ok_or_else(|| refuse(dir, format!("the token {pad:?} is not in the vocabulary")))?;
        let max_length = match config["model_max_length"].as_f64() {
            // transformers writes 1e30 if no length is set.
            Some(length) if length <= MOST_LENGTH => length.max(0.0) as usize,
            _ => MOST_LENGTH as usize,
        };
        let tokenizer = Self { inner, pad, max_length };
        let empty = tokenizer.encode("", Thinking::Disabled, usize::MAX);
        if empty.truncated || empty.ids.len() >= max_length {
            let reason =
                format!("model_max_length is {max_length}, which leaves no room for words");
            return Err(refuse(&path, reason));
        }
        Ok(tokenizer)
    }

    /// The most ids of an encoding: the `model_max_length` of the file.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The size of the vocabulary: one more than the largest id.
    pub fn vocab_size(&self) -> u32 {
        let ids = self.inner.get_vocab(true).into_values();
        ids.max().map_or(0, |largest| largest.saturating_add(1))
    }

    /// Encodes the chat with one prompt as at most `length` ids, or [`max_length`](Self::max_length) if that
    /// is less. A chat that is too long is cut at its end.
    pub fn encode(&self, prompt: &str, thinking: Thinking, length: usize) -> QwenEncoding {
        let mut ids = self.ids(&chat(prompt, thinking));
        let length = length.min(self.max_length);
        let truncated = ids.len() > length;
        ids.truncate(length);
        QwenEncoding { ids, truncated }
    }

    /// Encodes the chats with prompts, padded on the right to `length` ids, or to
    /// [`max_length`](Self::max_length) if that is less.
    pub fn encode_batch<S: AsRef<str>>(
        &self,
        prompts: &[S],
        thinking: Thinking,
        length: usize,
        device: &Device,
    ) -> PaddedPrompts {
        let length = length.min(self.max_length);
        let mut ids = Vec::with_capacity(prompts.len() * length);
        let mut mask = Vec::with_capacity(prompts.len() * length);
        for (row, prompt) in prompts.iter().enumerate() {
            let encoding = self.encode(prompt.as_ref(), thinking, length);
            ids.extend(encoding.ids.into_iter().map(|id| id as i32));
            mask.resize(ids.len(), true);
            ids.resize((row + 1) * length, self.pad as i32);
            mask.resize(ids.len(), false);
        }
        let shape = [prompts.len(), length];
        PaddedPrompts {
            ids: Tensor::from_data(TensorData::new(ids, shape), device),
            mask: Tensor::from_data(TensorData::new(mask, shape), device),
        }
    }

    /// The id of `word` if it is a single token in the middle of a text. Such a word can name a new subject.
    pub fn single_token(&self, word: &str) -> Option<u32> {
        match self.ids(&format!(" {word}"))[..] {
            [id] => Some(id),
            _ => None,
        }
    }

    /// Checks that a text encoder has as many tokens as this tokenizer needs.
    ///
    /// # Errors
    ///
    /// [`ModelError::Tokenizer`], which names `dir`, the directory of the tokenizer.
    pub fn check_fits(&self, dir: &Path, config: &Qwen3Config) -> Result<(), ModelError> {
        let (known, vocabulary) = (self.vocab_size() as usize, config.vocab_size);
        if known <= vocabulary {
            return Ok(());
        }
        let largest = known - 1;
        let reason =
            format!("it has the id {largest}, but the text encoder has {vocabulary} tokens");
        Err(refuse(dir, reason))
    }

    fn ids(&self, text: &str) -> Vec<u32> {
        // `from_dir` made sure that every byte is a token, so that no text can fail.
        let encoding = self.inner.encode_fast(text, false);
        encoding.map_or_else(|_| Vec::new(), |encoding| encoding.get_ids().to_vec())
    }
}

/// Checks that a `tokenizer.json` splits texts as Qwen's does, and that every byte is a token.
fn check_tokenizer(file: &Value) -> Result<(), String> {
    let refuse = |field: &str, value: &Value| {
        Err(format!("`{field}` is {value}, which is not that of Qwen's tokenizer"))
    };
    if file["normalizer"] != json!({"type": "NFC"}) {
        return refuse("normalizer", &file["normalizer"]);
    }
    let splitter = &file["pre_tokenizer"];
    let [words, bytes] = match splitter["pretokenizers"].as_array().map(Vec::as_slice) {
        Some([words, bytes]) if splitter["type"] == "Sequence" => [words, bytes],
        _ => return refuse("pre_tokenizer", splitter),
    };
    let split = json!({
        "type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": false,
    });
    let of_bytes = bytes["type"] == "ByteLevel"
        && bytes["add_prefix_space"] == false
        && bytes["use_regex"] == false;
    if *words != split || !of_bytes {
        return refuse("pre_tokenizer", splitter);
    }
    let after = &file["post_processor"];
    if !after.is_null() && after["type"] != "ByteLevel" {
        return refuse("post_processor", after);
    }
    let model = &file["model"];
    for field in ["end_of_word_suffix", "ignore_merges"] {
        if ![Value::Null, json!(""), json!(false)].contains(&model[field]) {
            return refuse(&format!("model.{field}"), &model[field]);
        }
    }
    let known = |byte: &char| model["vocab"].get(byte.to_string()).is_some();
    match ByteLevel::alphabet().iter().filter(|byte| !known(byte)).min() {
        Some(byte) => Err(format!("`model.vocab` lacks {byte:?}, which stands for a byte")),
        None => Ok(()),
    }
}

/// Checks that the tokens which a config adds are in the vocabulary, with the same ids.
fn check_added(inner: &tokenizers::Tokenizer, added: &Value) -> Result<(), String> {
    for (id, token) in added.as_object().into_iter().flatten() {
        let content = token["content"].as_str().unwrap_or_default();
        if inner.token_to_id(content).map(|known| known.to_string()).as_ref() != Some(id) {
            return Err(format!(
                "`added_tokens_decoder` gives {content:?} the id {id}, and tokenizer.json does not"
            ));
        }
    }
    Ok(())
}

/// The padding token: that of the config, or of the older file beside it.
fn pad_token(dir: &Path, config: &Value) -> Result<String, ModelError> {
    let content = |value: &Value| {
        let text = value.as_str().or_else(|| value["content"].as_str());
        text.map(str::to_owned)
    };
    // transformers reads the older file only if the newer one lists no added tokens, and then the older one
    // wins.
    let map = match config["added_tokens_decoder"].is_object() {
        true => Value::Null,
        false => read_json(&dir.join("special_tokens_map.json"))?,
    };
    let named = content(&map["pad_token"]).or_else(|| content(&config["pad_token"]));
    Ok(named.unwrap_or_else(|| PAD.to_owned()))
}
