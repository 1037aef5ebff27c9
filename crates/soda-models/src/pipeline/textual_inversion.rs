//! New tokens with embeddings of their own in every text encoder (Textual Inversion, Gal et al., arXiv
//! 2208.01618).

use std::ops::Range;
use std::path::Path;

use burn::module::Param;
use burn::tensor::Tensor;
use serde_json::{Value, json};

use super::json;
use super::model::Pipeline;
use super::networks::Networks;
use crate::clip::ClipTextModel;
use crate::error::ModelError;
use crate::noise::{generator, randn_with};
use crate::tokenizer::{Tokenizer, matches_whole_word, vector_name};

/// A new token and its embeddings.
#[derive(Debug, Clone)]
pub struct TokenEmbedding {
    /// The token, as prompts spell it.
    pub token: String,
    /// Embeddings in the text encoder, `[k, width]` for `k` vectors.
    pub first: Tensor<2>,
    /// Embeddings in SDXL's second text encoder, `[k, width]`.
    pub second: Option<Tensor<2>>,
}

impl Pipeline {
    /// Makes initial embeddings of a new `token` with `num_vectors` vectors.
    ///
    /// The vectors are those of the tokens of `initializer`, repeated if there are fewer. If `initializer`
    /// has no tokens, the vectors are Gaussian noise of the embedding table's root mean square, drawn from
    /// the generator of `seed` and `stream`.
    ///
    /// # Errors
    ///
    /// [`ModelError::Token`] if the text encoder is not CLIP's.
    pub fn init_token_embedding(
        &self,
        token: &str,
        initializer: &str,
        num_vectors: usize,
        (seed, stream): (u64, u64),
    ) -> Result<TokenEmbedding, ModelError> {
        let clip = self.text.clip().ok_or_else(|| needs_clip(token))?;
        let mut noise = generator(seed, stream);
        let mut of = |tokenizer: &Tokenizer, encoder: &ClipTextModel| {
            let table = encoder.text_model.embeddings.token_embedding.weight.val();
            match tokenizer.encode_without_special_tokens(initializer).as_slice() {
                [] => {
                    let [_, width] = table.dims();
                    let noise: Tensor<2> =
                        randn_with(&mut noise, [num_vectors, width], &table.device());
                    let spread = table.clone().square().mean().sqrt();
                    noise.cast(table.dtype()) * spread.unsqueeze()
                }
                ids => {
                    let row = |index: usize| {
                        let id = ids[index % ids.len()] as usize;
                        table.clone().narrow(0, id, 1)
                    };
                    Tensor::cat((0..num_vectors).map(row).collect(), 0)
                }
            }
        };
        let second = clip.second.as_ref();
        Ok(TokenEmbedding {
            token: token.to_owned(),
            first: of(&clip.tokenizer, &clip.text_encoder),
            second: second.map(|second| of(&second.tokenizer, &second.text_encoder)),
        })
    }

    /// Adds a new token to the vocabulary of every text encoder.
    ///
    /// # Errors
    ///
    /// [`ModelError::Token`] if the vocabulary has the token already, or if the embeddings do not fit the
    /// text encoders, which have to be CLIP's.
    pub fn add_token_embedding(&mut self, embedding: &TokenEmbedding) -> Result<(), ModelError> {
        let refuse = |reason: String| ModelError::Token { token: embedding.token.clone(), reason };
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
        let clip = self.text.clip_mut().ok_or_else(|| needs_clip(&embedding.token))?;
        // Everything is checked first, so that a token is in all vocabularies or in none.
        check(&clip.text_encoder, &embedding.first)?;
        match (&clip.second, &embedding.second) {
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
        add(
            &mut clip.tokenizer,
            &mut clip.text_encoder,
            &embedding.token,
            embedding.first.clone(),
        )?;
        if let (Some(second), Some(vectors)) = (&mut clip.second, &embedding.second) {
            add(
                &mut second.tokenizer,
                &mut second.text_encoder,
                &embedding.token,
                vectors.clone(),
            )?;
        }
        Ok(())
    }

    /// The new tokens of the pipeline with the embeddings of `networks`, which may be trained further.
    pub fn token_embeddings(&self, networks: &Networks) -> Vec<TokenEmbedding> {
        let vectors = |tokenizer: &Tokenizer, encoder: Option<&ClipTextModel>| -> Vec<_> {
            let new = encoder.and_then(|encoder| encoder.text_model.embeddings.new_tokens.as_ref());
            let Some(new) = new else { return Vec::new() };
            let rows = |(_, ids): &(String, Range<u32>)| {
                new.vectors.val().narrow(0, ids.start as usize - new.first, ids.len())
            };
            tokenizer.added_tokens().iter().map(rows).collect()
        };
        let Some(clip) = self.text.clip() else { return Vec::new() };
        let first = vectors(&clip.tokenizer, networks.text_encoder.as_ref());
        let second = clip
            .second
            .as_ref()
            .map(|second| vectors(&second.tokenizer, networks.text_encoder_2.as_ref()));
        let added = clip.tokenizer.added_tokens().iter().zip(first).enumerate();
        let token = |(index, ((text, _), first)): (usize, (&(String, Range<u32>), Tensor<2>))| {
            TokenEmbedding {
                token: text.clone(),
                first,
                second: second.as_ref().and_then(|second| second.get(index).cloned()),
            }
        };
        added.map(token).collect()
    }
}

impl Networks {
    /// Makes the embeddings of new tokens trainable. Call this after adapters are attached, since attaching
    /// freezes all parameters.
    #[must_use]
    pub fn with_trainable_tokens(mut self) -> Self {
        for encoder in [&mut self.text_encoder, &mut self.text_encoder_2].into_iter().flatten() {
            if let Some(new) = &mut encoder.text_model.embeddings.new_tokens {
                new.vectors = new.vectors.clone().set_require_grad(true);
            }
        }
        self
    }

    /// Resets the embeddings of new tokens to those before training.
    #[must_use]
    pub fn with_initial_tokens(mut self) -> Self {
        for encoder in [&mut self.text_encoder, &mut self.text_encoder_2].into_iter().flatten() {
            if let Some(new) = &mut encoder.text_model.embeddings.new_tokens {
                new.vectors = Param::from_tensor(new.initial.clone());
            }
        }
        self
    }
}

fn needs_clip(token: &str) -> ModelError {
    let reason =
        "only CLIP's text encoders, those of Stable Diffusion, learn new tokens".to_owned();
    ModelError::Token { token: token.to_owned(), reason }
}

fn add(
    tokenizer: &mut Tokenizer,
    encoder: &mut ClipTextModel,
    token: &str,
    vectors: Tensor<2>,
) -> Result<(), ModelError> {
    let ids = tokenizer.add_token(token, vectors.dims()[0])?;
    let embeddings = &mut encoder.text_model.embeddings;
    let dtype = embeddings.token_embedding.weight.val().dtype();
    embeddings.add(ids.start as usize, vectors.cast(dtype));
    Ok(())
}

/// Writes the new tokens of `tokenizer` into its files, and the size of the embedding table into the
/// `config.json` of `encoder`, as transformers reads them.
pub(super) fn save(
    tokenizer: &Tokenizer,
    encoder: &ClipTextModel,
    tokenizer_dir: &Path,
    encoder_dir: &Path,
) -> Result<(), ModelError> {
    let added = tokenizer.added_tokens();
    if added.is_empty() {
        return Ok(());
    }
    // The name of each token, its id, and its matching rules.
    let tokens = added.iter().flat_map(|(token, ids)| {
        ids.clone().enumerate().map(move |(index, id)| {
            let content = vector_name(token, index);
            let rules = json!({
                "content": content, "single_word": matches_whole_word(token), "lstrip": false, "rstrip": false,
                "normalized": true, "special": false,
            });
            (content, id, rules)
        })
    });
    let tokens: Vec<(String, u32, Value)> = tokens.collect();
    json::edit(&tokenizer_dir.join("tokenizer.json"), |file| {
        if let Some(added) = file.get_mut("added_tokens").and_then(Value::as_array_mut) {
            added.extend(tokens.iter().map(|(_, id, rules)| {
                let mut token = rules.clone();
                token["id"] = json!(id);
                token
            }));
        }
    })?;
    json::edit(&tokenizer_dir.join("tokenizer_config.json"), |file| {
        if let Some(decoder) = file.get_mut("added_tokens_decoder").and_then(Value::as_object_mut) {
            decoder.extend(tokens.iter().map(|(_, id, rules)| (id.to_string(), rules.clone())));
        }
    })?;
    let path = tokenizer_dir.join("added_tokens.json");
    let mut listed = json::read_optional(&path)?.unwrap_or_default();
    listed.extend(tokens.iter().map(|(name, id, _)| (name.clone(), json!(id))));
    json::write(&path, &listed)?;
    let table = encoder.text_model.embeddings.token_embedding.weight.dims()[0];
    json::edit(&encoder_dir.join("config.json"), |file| {
        file.insert("vocab_size".to_owned(), json!(table));
        // If the config says 2, transformers takes the largest id for the end token, which would be a new
        // token.
        file.insert("eos_token_id".to_owned(), json!(tokenizer.eos_token_id()));
    })
}
