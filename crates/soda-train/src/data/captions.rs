//! All captions of a data set: encoded once, or as tokens for text encoders that are trained.

use std::collections::HashMap;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use soda_models::condition::{AddedCondition, Condition};
use soda_models::pipeline::{Pipeline, TokenIds};

use crate::data::cache::EncodeCache;
use crate::data::encoded_caption::EncodedCaption;
use crate::data::prompts::Prompts;
use crate::divided::{Division, Recipients, Work};
use crate::error::TrainError;

/// A list of `m` captions.
#[derive(Clone, Debug)]
pub(crate) enum Captions {
    /// The hidden states of the text encoder, `[m, n, width]`, their [lengths](Condition::lengths), and the
    /// pooled embeddings of SDXL, `[m, p]`.
    Encoded { hidden: Tensor<3>, lengths: Option<Vec<usize>>, pooled: Option<Tensor<2>> },
    /// Token ids, which are encoded in each step.
    Tokens(TokenIds),
}

impl Captions {
    /// Encodes each distinct caption once, as far as `cache` lacks it. The ranks divide these captions.
    ///
    /// Captions are encoded one by one: sums in a batch have another order, and the result must not depend on
    /// the captions that a cache has.
    pub(crate) fn encode(
        pipeline: &Pipeline,
        captions: &[String],
        cache: Option<&EncodeCache>,
        division: Division<'_>,
    ) -> Result<Self, TrainError> {
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut distinct: Vec<&String> = Vec::new();
        for caption in captions {
            pipeline.check_prompt(caption)?;
            numbers.entry(caption).or_insert_with(|| {
                distinct.push(caption);
                distinct.len() - 1
            });
        }
        let encoded = encode_distinct(pipeline, &distinct, cache, division)?;
        let (mut texts, mut all_pooled) = (Vec::new(), Vec::new());
        for caption in captions {
            let EncodedCaption { hidden, pooled } = encoded[numbers[caption.as_str()]].clone();
            // A caption that was encoded alone has no padding, unless the denoiser sees it.
            let lengths = (!pipeline.text.shows_padding()).then(|| vec![hidden.dims()[1]]);
            texts.push(Condition { text: hidden, lengths, added: None });
            all_pooled.extend(pooled);
        }
        let pooled = (!all_pooled.is_empty()).then(|| Tensor::cat(all_pooled, 0));
        let Condition { text: hidden, lengths, .. } = Condition::cat_texts(texts);
        Ok(Self::Encoded { hidden, lengths, pooled })
    }

    /// The number of captions.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Encoded { hidden, .. } => hidden.dims()[0],
            Self::Tokens(ids) => ids.first.dims()[0],
        }
    }

    /// The device of the captions.
    pub(crate) fn device(&self) -> Device {
        match self {
            Self::Encoded { hidden, .. } => hidden.device(),
            Self::Tokens(ids) => ids.first.device(),
        }
    }

    /// The captions with these indices. SDXL needs `time_ids`, `[b, 6]`, as well.
    pub(crate) fn select(&self, rows: &[i64], time_ids: impl FnOnce() -> Tensor<2>) -> Prompts {
        let data = TensorData::new(rows.to_vec(), [rows.len()]);
        let indices: Tensor<1, Int> = Tensor::from_data(data, &self.device());
        match self {
            Self::Encoded { hidden, lengths, pooled } => {
                let added = pooled.clone().map(|pooled| AddedCondition {
                    pooled: pooled.select(0, indices.clone()),
                    time_ids: time_ids(),
                });
                let of_row =
                    |lengths: &Vec<usize>| rows.iter().map(|row| lengths[*row as usize]).collect();
                Condition {
                    text: hidden.clone().select(0, indices),
                    lengths: lengths.as_ref().map(of_row),
                    added,
                }
                .into()
            }
            Self::Tokens(ids) => Prompts::Tokens {
                ids: ids.select(&indices),
                time_ids: ids.second.is_some().then(time_ids),
            },
        }
    }
}

/// Encodes each of these captions.
fn encode_distinct(
    pipeline: &Pipeline,
    captions: &[&String],
    cache: Option<&EncodeCache>,
    division: Division<'_>,
) -> Result<Vec<EncodedCaption>, TrainError> {
    if !pipeline.text.has_encoder() {
        // States of a freed text encoder are in the memory of every rank already.
        return Ok(captions.iter().map(|caption| encode(pipeline, caption)).collect());
    }
    let device = &pipeline.device;
    let find = |caption: &String, make: &dyn Fn() -> EncodedCaption| match cache {
        Some(cache) => cache.caption(&token_key(pipeline, caption), device, make),
        None => Ok(make()),
    };
    let work = Work {
        what: "encoded captions",
        count: captions.len(),
        recipients: Recipients::All,
        device,
        fits: &|_, found: &EncodedCaption, before: &[EncodedCaption]| {
            before.first().is_none_or(|first| found.can_join(first))
        },
    };
    let one = |item: usize| find(captions[item], &|| encode(pipeline, captions[item]));
    let encoded = division.each(&work, one)?;
    // What others have encoded, rank 0 stores.
    for item in division.of_others(captions.len()) {
        find(captions[item], &|| encoded[item].clone())?;
    }
    Ok(encoded)
}

/// Encodes one caption in f32.
fn encode(pipeline: &Pipeline, caption: &String) -> EncodedCaption {
    let size = [pipeline.image_size(); 2];
    let condition = pipeline.condition(std::slice::from_ref(caption), 0, size);
    let Condition { text: hidden, added, .. } = condition.cast(DType::F32);
    EncodedCaption { hidden, pooled: added.map(|added| added.pooled) }
}

/// The token ids of a caption in all text encoders, as part of a cache key.
fn token_key(pipeline: &Pipeline, caption: &str) -> String {
    let ids = pipeline.text.token_ids(caption);
    let (first, second) = (ids.first().cloned().unwrap_or_default(), ids.get(1));
    format!("{first:?} {second:?}")
}
