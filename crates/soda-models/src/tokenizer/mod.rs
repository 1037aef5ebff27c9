//! Prompts to token ids by byte-pair encoding: CLIP's [`Tokenizer`] and the [`QwenTokenizer`] of Qwen3.
//!
//! CLIP's is that of transformers' `CLIPTokenizer`.
//! A prompt is normalised to NFC and lower case and split into words. Each word is split into the longest
//! pieces that the merges build (Sennrich et al., arXiv 1508.07909).
//!
//! The ids are put between a start and an end token and padded. The text encoder has one position embedding
//! for each of its 77 tokens, so every prompt becomes exactly that long.
//!
//! An added token may stand for several embeddings (Textual Inversion): `<mug>`, `<mug>_1`, `<mug>_2`. A
//! prompt contains the first name, and encoding expands it to all of them, as diffusers'
//! `maybe_convert_prompt` does.

mod chat_template;
mod checks;
mod files;
mod qwen;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use tokenizers::AddedToken;
use tokenizers::processors::PostProcessorWrapper;

use self::files::{Settings, check_model, from_tokenizer_json, from_vocabulary, refuse};
use crate::clip::ClipTextConfig;
use crate::error::ModelError;

pub use self::chat_template::Thinking;
pub use self::qwen::{PaddedPrompts, QwenEncoding, QwenTokenizer};

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
            from_tokenizer_json(&whole, |_| Ok(()))?
        } else {
            from_vocabulary(dir, &settings)?
        };
        check_model(dir, &inner)?;
        // The ids are those of the words alone. A post-processor would add other tokens or move offsets.
        inner.with_post_processor(None::<PostProcessorWrapper>);
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
        self.inner
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |largest| largest.saturating_add(1))
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
