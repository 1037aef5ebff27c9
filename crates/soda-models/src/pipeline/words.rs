//! Words that are added to the vocabulary, each with vectors of its own in every text encoder (Textual Inversion, Gal et
//! al., arXiv 2208.01618).

use std::fs;
use std::ops::Range;
use std::path::Path;

use burn::module::Param;
use burn::tensor::Tensor;
use serde_json::{Map, Value, json};

use super::{Networks, Pipeline};
use crate::clip::text::ClipTextModel;
use crate::error::ModelError;
use crate::noise::{generator, normal};
use crate::tokenizer::{Tokenizer, is_plain, numbered};

/// A word, and what it stands for.
#[derive(Debug, Clone)]
pub struct Word {
    /// As prompts say it.
    pub text: String,
    /// Its vectors in the text encoder, `[k, width]`.
    pub first: Tensor<2>,
    /// In SDXL's second, `[k, width]`.
    pub second: Option<Tensor<2>>,
}

impl Pipeline {
    /// A word that is told as the words `like` are: of their tokens' vectors the first `vectors`, or all over again
    /// where there are fewer. Where `like` says nothing, as Gaussian noise of the vocabulary's size, which a seed and a
    /// stream decide.
    pub fn word_like(
        &self,
        text: &str,
        like: &str,
        vectors: usize,
        (seed, stream): (u64, u64),
    ) -> Word {
        let mut noise = generator(seed, stream);
        let mut of = |tokenizer: &Tokenizer, encoder: &ClipTextModel| {
            let table = encoder.text_model.embeddings.token_embedding.weight.val();
            match tokenizer.words(like).as_slice() {
                [] => {
                    let [_, width] = table.dims();
                    let noise: Tensor<2> = normal(&mut noise, [vectors, width], &table.device());
                    let spread = table.clone().square().mean().sqrt();
                    noise.cast(table.dtype()) * spread.unsqueeze()
                }
                ids => {
                    let row = |index: usize| {
                        let id = ids[index % ids.len()] as usize;
                        table.clone().narrow(0, id, 1)
                    };
                    Tensor::cat((0..vectors).map(row).collect(), 0)
                }
            }
        };
        let second = self.second.as_ref();
        Word {
            text: text.to_owned(),
            first: of(&self.tokenizer, &self.text_encoder),
            second: second.map(|second| of(&second.tokenizer, &second.text_encoder)),
        }
    }

    /// Adds a word to the vocabulary of every text encoder.
    ///
    /// # Errors
    ///
    /// A word that the vocabulary has already, or whose vectors are those of another base.
    pub fn add_word(&mut self, word: &Word) -> Result<(), ModelError> {
        let refuse = |reason: String| ModelError::Word { word: word.text.clone(), reason };
        let check = |encoder: &ClipTextModel, vectors: &Tensor<2>| {
            let [_, width] = encoder.text_model.embeddings.token_embedding.weight.dims();
            let [count, found] = vectors.dims();
            match (count, found == width) {
                (0, _) => Err(refuse("it has no vectors".to_owned())),
                (_, false) => Err(refuse(format!(
                    "its vectors have {found} numbers where the text encoder's have {width}: it is of another base"
                ))),
                _ => Ok(()),
            }
        };
        // All checks first, so that a word is in all vocabularies or in none.
        check(&self.text_encoder, &word.first)?;
        match (&self.second, &word.second) {
            (Some(second), Some(vectors)) => check(&second.text_encoder, vectors)?,
            (None, None) => {}
            (Some(_), None) => {
                return Err(refuse(
                    "it has vectors for one text encoder, and the base has two".to_owned(),
                ));
            }
            (None, Some(_)) => {
                return Err(refuse(
                    "it has vectors for two text encoders, and the base has one".to_owned(),
                ));
            }
        }
        add(&mut self.tokenizer, &mut self.text_encoder, &word.text, word.first.clone())?;
        if let (Some(second), Some(vectors)) = (&mut self.second, &word.second) {
            add(&mut second.tokenizer, &mut second.text_encoder, &word.text, vectors.clone())?;
        }
        Ok(())
    }

    /// The added words as `networks` have them, which are the pipeline's, trained further.
    pub fn words_of(&self, networks: &Networks) -> Vec<Word> {
        let vectors = |tokenizer: &Tokenizer, encoder: Option<&ClipTextModel>| -> Vec<_> {
            let new = encoder.and_then(|encoder| encoder.text_model.embeddings.new_tokens.as_ref());
            let Some(new) = new else { return Vec::new() };
            let rows = |(_, ids): &(String, Range<u32>)| {
                new.vectors.val().narrow(0, ids.start as usize - new.first, ids.len())
            };
            tokenizer.added_words().iter().map(rows).collect()
        };
        let first = vectors(&self.tokenizer, networks.text_encoder.as_ref());
        let second = self
            .second
            .as_ref()
            .map(|second| vectors(&second.tokenizer, networks.text_encoder_2.as_ref()));
        let words = self.tokenizer.added_words().iter().zip(first).enumerate();
        let word =
            |(index, ((text, _), first)): (usize, (&(String, Range<u32>), Tensor<2>))| Word {
                text: text.clone(),
                first,
                second: second.as_ref().and_then(|second| second.get(index).cloned()),
            };
        words.map(word).collect()
    }
}

impl Networks {
    /// The same with new words that learn. Attaching adapters freezes everything that is there, so this comes after.
    #[must_use]
    pub fn with_learning_words(mut self) -> Self {
        for encoder in [&mut self.text_encoder, &mut self.text_encoder_2].into_iter().flatten() {
            if let Some(new) = &mut encoder.text_model.embeddings.new_tokens {
                new.vectors = new.vectors.clone().set_require_grad(true);
            }
        }
        self
    }

    /// The same with new words as they were before anything was learnt.
    #[must_use]
    pub fn with_words_at_start(mut self) -> Self {
        for encoder in [&mut self.text_encoder, &mut self.text_encoder_2].into_iter().flatten() {
            if let Some(new) = &mut encoder.text_model.embeddings.new_tokens {
                new.vectors = Param::from_tensor(new.start.clone());
            }
        }
        self
    }
}

fn add(
    tokenizer: &mut Tokenizer,
    encoder: &mut ClipTextModel,
    word: &str,
    vectors: Tensor<2>,
) -> Result<(), ModelError> {
    let ids = tokenizer.add_word(word, vectors.dims()[0])?;
    let embeddings = &mut encoder.text_model.embeddings;
    let dtype = embeddings.token_embedding.weight.val().dtype();
    embeddings.add(ids.start as usize, vectors.cast(dtype));
    Ok(())
}

/// Writes the new words of `tokenizer` into the files of its directory, and the larger table of `encoder` into the
/// `config.json` of its own, as transformers reads them.
pub(super) fn save(
    tokenizer: &Tokenizer,
    encoder: &ClipTextModel,
    tokenizer_dir: &Path,
    encoder_dir: &Path,
) -> Result<(), ModelError> {
    let words = tokenizer.added_words();
    if words.is_empty() {
        return Ok(());
    }
    // Each token's name, its id, and the rules by which it is found.
    let tokens = words.iter().flat_map(|(word, ids)| {
        ids.clone().enumerate().map(move |(index, id)| {
            let content = numbered(word, index);
            let rules = json!({
                "content": content, "single_word": is_plain(word), "lstrip": false, "rstrip": false,
                "normalized": true, "special": false,
            });
            (content, id, rules)
        })
    });
    let tokens: Vec<(String, u32, Value)> = tokens.collect();
    edit(&tokenizer_dir.join("tokenizer.json"), |file| {
        if let Some(added) = file.get_mut("added_tokens").and_then(Value::as_array_mut) {
            added.extend(tokens.iter().map(|(_, id, rules)| {
                let mut token = rules.clone();
                token["id"] = json!(id);
                token
            }));
        }
    })?;
    edit(&tokenizer_dir.join("tokenizer_config.json"), |file| {
        if let Some(decoder) = file.get_mut("added_tokens_decoder").and_then(Value::as_object_mut) {
            decoder.extend(tokens.iter().map(|(_, id, rules)| (id.to_string(), rules.clone())));
        }
    })?;
    let path = tokenizer_dir.join("added_tokens.json");
    let mut listed = read(&path)?.unwrap_or_default();
    listed.extend(tokens.iter().map(|(name, id, _)| (name.clone(), json!(id))));
    write(&path, &listed)?;
    let table = encoder.text_model.embeddings.token_embedding.weight.dims()[0];
    edit(&encoder_dir.join("config.json"), |file| {
        file.insert("vocab_size".to_owned(), json!(table));
        // Where it says 2, whatever the end token is, transformers takes the largest id for it, which a new one is.
        file.insert("eos_token_id".to_owned(), json!(tokenizer.end_token()));
    })
}

/// Changes a JSON file that is there.
pub(super) fn edit(
    path: &Path,
    change: impl FnOnce(&mut Map<String, Value>),
) -> Result<(), ModelError> {
    let Some(mut file) = read(path)? else { return Ok(()) };
    change(&mut file);
    write(path, &file)
}

fn read(path: &Path) -> Result<Option<Map<String, Value>>, ModelError> {
    if !path.exists() {
        return Ok(None);
    }
    let text =
        fs::read_to_string(path).map_err(|e| ModelError::io(path, "a file of the tokenizer", e))?;
    let json = |source| ModelError::Json { path: path.to_path_buf(), source };
    serde_json::from_str(&text).map(Some).map_err(json)
}

fn write(path: &Path, file: &Map<String, Value>) -> Result<(), ModelError> {
    let json = |source| ModelError::Json { path: path.to_path_buf(), source };
    let text = serde_json::to_string_pretty(file).map_err(json)?;
    fs::write(path, text).map_err(|source| ModelError::Io { path: path.to_path_buf(), source })
}
