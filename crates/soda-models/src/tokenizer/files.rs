//! The files of a tokenizer's directory.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, Model, SplitDelimiterBehavior};

use super::checks;
use crate::error::{ConfigError, ModelError};
use crate::input_file::{SizeLimit, read_text};

/// The pattern of a word in OpenAI's CLIP. Special tokens stay whole.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The number of positions of CLIP's text encoder, for a tokenizer that does not state it.
const MAX_LENGTH: usize = 77;

/// The longest prompt that a file may state, in tokens.
pub(super) const MOST_LENGTH: f64 = 65_536.0;

/// The contents of the tokenizer's JSON files beside the vocabulary.
pub(super) struct Settings {
    pub(super) start: AddedToken,
    pub(super) end: AddedToken,
    pub(super) pad: AddedToken,
    pub(super) unknown: AddedToken,
    /// Tokens that were added to the vocabulary, by id.
    added: BTreeMap<u32, AddedToken>,
    pub(super) max_length: usize,
}

impl Settings {
    pub(super) fn read(dir: &Path) -> Result<Self, ModelError> {
        let config = read_json(&dir.join("tokenizer_config.json"))?;
        let decoder = config.get("added_tokens_decoder").and_then(Value::as_object);
        // transformers reads the older file only if the newer one lists no added tokens, and then the older
        // one wins. Stable Diffusion 2's pad token "!" is right in the older file alone.
        let map = match decoder {
            Some(_) => Value::Null,
            None => read_json(&dir.join("special_tokens_map.json"))?,
        };
        let special = |name: &str, default: &str| {
            let value = map.get(name).or_else(|| config.get(name));
            value.and_then(token).unwrap_or_else(|| AddedToken::from(default, true))
        };

        let mut added = BTreeMap::new();
        for (id, value) in decoder.into_iter().flatten() {
            if let (Ok(id), Some(token)) = (id.parse(), token(value)) {
                let special = value.get("special").and_then(Value::as_bool).unwrap_or(false);
                added.insert(id, token.special(special));
            }
        }
        let listed = read_json(&dir.join("added_tokens.json"))?;
        for (content, id) in listed.as_object().into_iter().flatten() {
            let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else { continue };
            added.entry(id).or_insert_with(|| AddedToken::from(content.as_str(), false));
        }

        let max_length = match config.get("model_max_length").and_then(Value::as_f64) {
            // transformers writes 1e30 if no length is set.
            Some(length) if length <= MOST_LENGTH => length as usize,
            _ => MAX_LENGTH,
        };
        if max_length < 3 {
            let reason =
                format!("model_max_length is {max_length}, which leaves no room for words");
            return Err(refuse(&dir.join("tokenizer_config.json"), reason));
        }
        Ok(Self {
            start: special("bos_token", "<|startoftext|>"),
            end: special("eos_token", "<|endoftext|>"),
            pad: special("pad_token", "<|endoftext|>"),
            unknown: special("unk_token", "<|endoftext|>"),
            added,
            max_length,
        })
    }
}

/// Refuses a model that is not byte-pair encoding, or whose unknown token is not in the vocabulary.
pub(super) fn check_model(dir: &Path, inner: &tokenizers::Tokenizer) -> Result<(), ModelError> {
    let ModelWrapper::BPE(model) = inner.get_model() else {
        return Err(refuse(dir, "its model is not byte-pair encoding"));
    };
    match model.get_unk_token() {
        Some(unknown) if model.token_to_id(unknown).is_none() => {
            Err(refuse(dir, format!("the unknown token {unknown} is not in the vocabulary")))
        }
        _ => Ok(()),
    }
}

/// Parses a token: a string, or an object with matching rules.
fn token(value: &Value) -> Option<AddedToken> {
    let flag = |name: &str| value.get(name).and_then(Value::as_bool).unwrap_or(false);
    let content = value.as_str().or_else(|| value.get("content")?.as_str())?;
    let token = AddedToken::from(content, true)
        .normalized(flag("normalized"))
        .single_word(flag("single_word"))
        .lstrip(flag("lstrip"))
        .rstrip(flag("rstrip"));
    Some(token)
}

/// Reads a `tokenizer.json`, whose content must also pass `check`.
pub(super) fn from_tokenizer_json(
    path: &Path,
    check: impl FnOnce(&Value) -> Result<(), String>,
) -> Result<tokenizers::Tokenizer, ModelError> {
    let text = read_text(path, SizeLimit::TOKENIZER)
        .map_err(|e| ModelError::io(path, "the tokenizer's tokenizer.json", e))?;
    let file = serde_json::from_str(&text).map_err(|e| refuse(path, e))?;
    checks::check_tokenizer(&file).map_err(|reason| refuse(path, reason))?;
    check(&file).map_err(|reason| refuse(path, reason))?;
    tokenizers::Tokenizer::from_bytes(text).map_err(|e| refuse(path, e))
}

/// Builds the processing steps of `CLIPTokenizer` around `vocab.json` and `merges.txt`. Directories from
/// before `tokenizer.json` have no other files.
pub(super) fn from_vocabulary(
    dir: &Path,
    settings: &Settings,
) -> Result<tokenizers::Tokenizer, ModelError> {
    let fail = |e: tokenizers::Error| refuse(dir, e);
    let path = dir.join("vocab.json");
    let what = "the tokenizer's vocabulary (or a tokenizer.json)";
    let text =
        read_text(&path, SizeLimit::TOKENIZER).map_err(|e| ModelError::io(&path, what, e))?;
    let vocabulary = checks::vocabulary(&parse(&path, &text)?).map_err(|e| refuse(&path, e))?;
    let path = dir.join("merges.txt");
    let what = "the tokenizer's merges";
    let text =
        read_text(&path, SizeLimit::TOKENIZER).map_err(|e| ModelError::io(&path, what, e))?;
    let merges = checks::merges(&text, &vocabulary).map_err(|e| refuse(&path, e))?;

    let model = BPE::builder()
        .vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), merges)
        .unk_token(settings.unknown.content.clone())
        .end_of_word_suffix("</w>".into())
        .build()
        .map_err(fail)?;
    let mut inner = tokenizers::Tokenizer::new(model);

    let spaces = replace::ReplacePattern::Regex(r"\s+".into());
    let spaces = Replace::new(spaces, " ").map_err(fail)?;
    inner
        .with_normalizer(Some(Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()])))
        .map_err(fail)?;
    let words = SplitPattern::Regex(WORDS.into());
    let words = Split::new(words, SplitDelimiterBehavior::Removed, true).map_err(fail)?;
    let bytes = ByteLevel::default().add_prefix_space(false);
    inner.with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), bytes.into()])));

    let Settings { start, end, pad, unknown, added, .. } = settings;
    for token in [start, end, pad, unknown].into_iter().chain(added.values()) {
        // A token that takes the spaces beside it would overlap one that consists of them.
        if token.content.is_empty() || token.content.trim() != token.content {
            return Err(refuse(dir, format!("the special token {:?} is no word", token.content)));
        }
    }
    inner.add_special_tokens([start, end, pad, unknown].map(Clone::clone)).map_err(fail)?;
    for (id, token) in added {
        inner.add_tokens([token.clone()]).map_err(fail)?;
        if inner.token_to_id(&token.content) != Some(*id) {
            let reason = format!("the added token {} cannot have the id {id}", token.content);
            return Err(refuse(dir, reason));
        }
    }
    Ok(inner)
}

/// Reads an optional JSON file. The result is null if the file does not exist.
pub(super) fn read_json(path: &Path) -> Result<Value, ModelError> {
    match read_text(path, SizeLimit::TOKENIZER) {
        Ok(text) => parse(path, &text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(e) => Err(ModelError::io(path, "a tokenizer file", e)),
    }
}

fn parse(path: &Path, text: &str) -> Result<Value, ModelError> {
    serde_json::from_str(text)
        .map_err(|source| ConfigError::Json { path: path.to_path_buf(), source }.into())
}

pub(super) fn refuse(path: &Path, reason: impl ToString) -> ModelError {
    ModelError::Tokenizer { path: path.to_path_buf(), reason: reason.to_string() }
}
