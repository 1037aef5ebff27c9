//! CLIP's tokenizer: prompts to token ids by byte-pair encoding, as transformers' `CLIPTokenizer`.
//!
//! A prompt is normalised to NFC and lower case and split into words. Each word is split into the longest
//! pieces that the merges build (Sennrich et al., arXiv 1508.07909).
//!
//! The ids are put between a start and an end token and padded. The text encoder has one position embedding
//! for each of its 77 tokens, so every prompt becomes exactly that long.
//!
//! An added token may stand for several embeddings (Textual Inversion): `<mug>`, `<mug>_1`, `<mug>_2`. A
//! prompt contains the first name, and encoding expands it to all of them, as diffusers'
//! `maybe_convert_prompt` does.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, Model, SplitDelimiterBehavior};

use crate::clip::ClipTextConfig;
use crate::error::{ConfigError, ModelError};

/// The pattern of a word in OpenAI's CLIP. Special tokens stay whole.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The number of positions of CLIP's text encoder, for a tokenizer that does not state it.
const MAX_LENGTH: usize = 77;

/// The token ids of one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Start token, tokens of the prompt, end token and padding: [`Tokenizer::max_length`] ids.
    pub ids: Vec<u32>,
    /// Whether the prompt was too long, so that its end is not in `ids`.
    pub truncated: bool,
}

/// CLIP's tokenizer. Its ids equal those of transformers' `CLIPTokenizer`.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    start: u32,
    end: u32,
    pad: u32,
    unknown: u32,
    max_length: usize,
    /// All ids of an added token that has several, by its first id.
    expansions: HashMap<u32, Vec<u32>>,
    /// The tokens that were added after loading, with their ids.
    added: Vec<(String, Range<u32>)>,
}

impl Tokenizer {
    /// Loads a tokenizer from `dir`.
    ///
    /// It reads `tokenizer.json`, or else `vocab.json` and `merges.txt`. The special tokens come from
    /// `tokenizer_config.json` and `special_tokens_map.json`.
    ///
    /// # Errors
    ///
    /// [`ModelError`] for a file that is missing or broken, and for special tokens that the vocabulary lacks.
    pub fn from_dir(dir: &Path) -> Result<Self, ModelError> {
        std::fs::metadata(dir).map_err(|e| ModelError::io(dir, "a tokenizer's directory", e))?;
        let settings = Settings::read(dir)?;
        let whole = dir.join("tokenizer.json");
        let mut inner = if whole.exists() {
            tokenizers::Tokenizer::from_file(&whole).map_err(|e| refuse(&whole, e))?
        } else {
            from_vocabulary(dir, &settings)?
        };
        check_model(dir, &inner)?;
        // Truncation and padding happen below. A file that also did them would hide that a prompt was
        // truncated.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| refuse(dir, e))?;

        let id = |token: &AddedToken| {
            inner.token_to_id(&token.content).ok_or_else(|| {
                refuse(dir, format!("the special token {} is not in the vocabulary", token.content))
            })
        };
        Ok(Self {
            start: id(&settings.start)?,
            end: id(&settings.end)?,
            pad: id(&settings.pad)?,
            unknown: id(&settings.unknown)?,
            max_length: settings.max_length,
            expansions: expansions(&inner),
            added: Vec::new(),
            inner,
        })
    }

    /// Adds the new `token` with `num_vectors` embedding vectors and returns their ids.
    ///
    /// The new ids follow all others.
    ///
    /// Encoding finds the token in any case. A token that starts or ends with a letter or digit is found as a
    /// whole word only.
    ///
    /// # Errors
    ///
    /// [`ModelError::Token`] if `token` is empty, contains white space, or is in the vocabulary already.
    ///
    /// # Panics
    ///
    /// If `num_vectors` is 0.
    pub fn add_token(&mut self, token: &str, num_vectors: usize) -> Result<Range<u32>, ModelError> {
        assert!(num_vectors > 0, "a token has at least one vector");
        let refuse =
            |reason: &str| ModelError::Token { token: token.to_owned(), reason: reason.to_owned() };
        if token.is_empty() || token.contains(char::is_whitespace) {
            return Err(refuse("a new token is one word, without spaces"));
        }
        let names: Vec<String> = (0..num_vectors).map(|index| vector_name(token, index)).collect();
        if let Some(taken) = names.iter().find(|name| self.inner.token_to_id(name).is_some()) {
            let reason =
                format!("the vocabulary has {taken} as a token; choose another, such as <{token}>");
            return Err(refuse(&reason));
        }
        let next = self.vocab_size();
        let plain = |name: &String| AddedToken::from(name.as_str(), false);
        let tokens: Vec<_> =
            names.iter().map(|name| plain(name).single_word(matches_whole_word(token))).collect();
        self.inner.add_tokens(tokens).map_err(|error| refuse(&error.to_string()))?;
        self.expansions = expansions(&self.inner);
        let ids = next..next + num_vectors as u32;
        self.added.push((token.to_owned(), ids.clone()));
        Ok(ids)
    }

    /// The tokens that were [added](Self::add_token), with their ids.
    pub fn added_tokens(&self) -> &[(String, Range<u32>)] {
        &self.added
    }

    /// A token beyond the vocabulary that the merges build, read from the directory or
    /// [added](Self::add_token). The first one by name.
    pub fn extra_token(&self) -> Option<String> {
        let added = self.inner.get_added_tokens_decoder().into_values();
        added.filter(|token| !token.special).map(|token| token.content).min()
    }

    /// The size of the vocabulary: one more than the largest id.
    pub fn vocab_size(&self) -> u32 {
        self.inner.get_vocab(true).into_values().max().map_or(0, |largest| largest + 1)
    }

    /// Encodes one prompt. A prompt that is too long is truncated, and the end token is kept.
    pub fn encode(&self, prompt: &str) -> Encoding {
        let words = self.encode_without_special_tokens(prompt);
        let room = self.max_length - 2;
        let mut ids = Vec::with_capacity(self.max_length);
        ids.push(self.start);
        ids.extend(words.iter().take(room));
        ids.push(self.end);
        ids.resize(self.max_length, self.pad);
        Encoding { ids, truncated: words.len() > room }
    }

    /// Encodes prompts as a tensor `[b, max_length]`.
    pub fn encode_batch<S: AsRef<str>>(&self, prompts: &[S], device: &Device) -> Tensor<2, Int> {
        let ids: Vec<i32> = prompts
            .iter()
            .flat_map(|prompt| self.encode(prompt.as_ref()).ids)
            .map(|id| id as i32)
            .collect();
        Tensor::from_data(TensorData::new(ids, [prompts.len(), self.max_length]), device)
    }

    /// The id of `word` if it is a single token of the vocabulary. Such a word can name a new subject.
    pub fn single_token(&self, word: &str) -> Option<u32> {
        match self.encode_without_special_tokens(word)[..] {
            [id] if id != self.unknown => Some(id),
            _ => None,
        }
    }

    /// The number of ids of every encoding.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Checks that a text encoder has as many tokens and positions as this tokenizer needs.
    ///
    /// # Errors
    ///
    /// [`ModelError::Tokenizer`], which names `dir`, the directory of the tokenizer.
    pub fn check_fits(&self, dir: &Path, config: &ClipTextConfig) -> Result<(), ModelError> {
        let positions = config.max_position_embeddings;
        if self.max_length > positions {
            let reason = format!(
                "model_max_length is {}, but the text encoder has {positions} positions",
                self.max_length
            );
            return Err(refuse(dir, reason));
        }
        let (known, vocabulary) = (self.vocab_size() as usize, config.vocab_size);
        if known > vocabulary {
            let largest = known - 1;
            let reason =
                format!("it has the id {largest}, but the text encoder has {vocabulary} tokens");
            return Err(refuse(dir, reason));
        }
        Ok(())
    }

    /// The id of the end token, at which the text encoder's pooled output is read.
    pub fn eos_token_id(&self) -> u32 {
        self.end
    }

    /// Encodes `text` without start token, end token and padding.
    pub fn encode_without_special_tokens(&self, text: &str) -> Vec<u32> {
        let encoding = self.inner.encode_fast(text, false);
        // Only a model without an unknown token can fail, and `from_dir` refuses such a model.
        let encoding = encoding.expect("a byte-pair model with an unknown token encodes any text");
        let all = |id: &u32| self.expansions.get(id).cloned().unwrap_or_else(|| vec![*id]);
        encoding.get_ids().iter().flat_map(all).collect()
    }
}

/// Whether `word` might be part of another word, as `sks` is of `asks`. Such a token is matched as a whole
/// word only.
pub(crate) fn matches_whole_word(word: &str) -> bool {
    let of_words = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    of_words(word.chars().next()) || of_words(word.chars().next_back())
}

/// The name of the embedding `index` of a token. diffusers numbers them from the second on.
pub(crate) fn vector_name(word: &str, index: usize) -> String {
    if index == 0 { word.to_owned() } else { format!("{word}_{index}") }
}

/// The ids of all added tokens that have more than one, by their first id.
fn expansions(inner: &tokenizers::Tokenizer) -> HashMap<u32, Vec<u32>> {
    let added: HashMap<String, u32> = inner
        .get_added_tokens_decoder()
        .into_iter()
        .filter(|(_, token)| !token.special)
        .map(|(id, token)| (token.content, id))
        .collect();
    let of = |word: &String| -> Vec<u32> {
        (0..).map_while(|index| added.get(&vector_name(word, index)).copied()).collect()
    };
    let all = added.iter().map(|(word, id)| (*id, of(word)));
    all.filter(|(_, ids)| ids.len() > 1).collect()
}

/// The contents of the tokenizer's JSON files beside the vocabulary.
struct Settings {
    start: AddedToken,
    end: AddedToken,
    pad: AddedToken,
    unknown: AddedToken,
    /// Tokens that were added to the vocabulary, by id.
    added: BTreeMap<u32, AddedToken>,
    max_length: usize,
}

impl Settings {
    fn read(dir: &Path) -> Result<Self, ModelError> {
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
            Some(length) if length < 1e6 => length as usize,
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
fn check_model(dir: &Path, inner: &tokenizers::Tokenizer) -> Result<(), ModelError> {
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

/// Builds the processing steps of `CLIPTokenizer` around `vocab.json` and `merges.txt`. Directories from
/// before `tokenizer.json` have no other files.
fn from_vocabulary(dir: &Path, settings: &Settings) -> Result<tokenizers::Tokenizer, ModelError> {
    let path = |name: &str, what: &'static str| {
        let path = dir.join(name);
        std::fs::metadata(&path).map_err(|e| ModelError::io(&path, what, e))?;
        path.to_str()
            .map(str::to_string)
            .ok_or_else(|| refuse(&path, "its path is not valid UTF-8: move the model elsewhere"))
    };
    let vocabulary = path("vocab.json", "the tokenizer's vocabulary (or a tokenizer.json)")?;
    let merges = path("merges.txt", "the tokenizer's merges")?;
    let fail = |e: tokenizers::Error| refuse(dir, e);

    let model = BPE::from_file(&vocabulary, &merges)
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
fn read_json(path: &Path) -> Result<Value, ModelError> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map_err(|source| ConfigError::Json { path: path.to_path_buf(), source }.into()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(e) => Err(ModelError::io(path, "a tokenizer file", e)),
    }
}

fn refuse(path: &Path, reason: impl ToString) -> ModelError {
    ModelError::Tokenizer { path: path.to_path_buf(), reason: reason.to_string() }
}
