//! Captions as the network is told them: read once, or as tokens for text encoders that learn.

use std::collections::HashMap;

use burn::tensor::{DType, Device, Int, Tensor};
use soda_models::pipeline::{Pipeline, TextIds};
use soda_models::unet::{AddedCondition, Condition};

use crate::data::cache::EncodeCache;
use crate::data::encoded_caption::EncodedCaption;
use crate::data::prompts::Prompts;
use crate::error::TrainError;

/// Captions, `m` of them.
#[derive(Clone, Debug)]
pub(crate) enum Captions {
    /// Text states `[m, 77, width]` and, of SDXL, summaries `[m, p]`.
    Read { states: Tensor<3>, pooled: Option<Tensor<2>> },
    /// What they are made of.
    Tokens(TextIds),
}

impl Captions {
    /// Text states of `texts`.
    ///
    /// Each caption is read by itself, and once: a batch would add in another order, and what a caption becomes must
    /// not depend on which others a cache has.
    pub(crate) fn read(
        pipeline: &Pipeline,
        texts: &[String],
        cache: Option<&EncodeCache>,
    ) -> Result<Self, TrainError> {
        let mut known: HashMap<&str, EncodedCaption> = HashMap::new();
        let (mut states, mut summaries) = (Vec::new(), Vec::new());
        for text in texts {
            if !known.contains_key(text.as_str()) {
                let make = || of(pipeline, text);
                let found = match cache {
                    Some(cache) => cache.text(&tokens(pipeline, text), &pipeline.device, make)?,
                    None => make(),
                };
                known.insert(text, found);
            }
            let EncodedCaption { states: own, pooled } = known[text.as_str()].clone();
            states.push(own);
            summaries.extend(pooled);
        }
        let pooled = (!summaries.is_empty()).then(|| Tensor::cat(summaries, 0));
        Ok(Self::Read { states: Tensor::cat(states, 0), pooled })
    }

    /// Their number.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Read { states, .. } => states.dims()[0],
            Self::Tokens(ids) => ids.first.dims()[0],
        }
    }

    /// Where they are.
    pub(crate) fn device(&self) -> Device {
        match self {
            Self::Read { states, .. } => states.device(),
            Self::Tokens(ids) => ids.first.device(),
        }
    }

    /// Those with these indices `[b]`; `time_ids` are what SDXL knows beside.
    pub(crate) fn select(
        &self,
        captions: Tensor<1, Int>,
        time_ids: impl FnOnce() -> Tensor<2>,
    ) -> Prompts {
        match self {
            Self::Read { states, pooled } => {
                let added = pooled.clone().map(|pooled| AddedCondition {
                    pooled: pooled.select(0, captions.clone()),
                    time_ids: time_ids(),
                });
                Condition { text: states.clone().select(0, captions), added }.into()
            }
            Self::Tokens(ids) => Prompts::Tokens {
                ids: ids.select(&captions),
                time_ids: ids.second.is_some().then(time_ids),
            },
        }
    }
}

fn of(pipeline: &Pipeline, text: &String) -> EncodedCaption {
    let size = [pipeline.image_size(); 2];
    let condition = pipeline.condition(std::slice::from_ref(text), 0, size);
    let Condition { text: states, added } = condition.cast(DType::F32);
    EncodedCaption { states, pooled: added.map(|added| added.pooled) }
}

/// What the encoders are given.
fn tokens(pipeline: &Pipeline, text: &str) -> String {
    let second = pipeline.second.as_ref().map(|second| second.tokenizer.encode(text).ids);
    format!("{:?} {second:?}", pipeline.tokenizer.encode(text).ids)
}
