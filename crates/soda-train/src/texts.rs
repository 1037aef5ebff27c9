//! Captions as the network is told them.

use std::collections::HashMap;

use burn::tensor::{DType, Tensor};
use soda_models::pipeline::Pipeline;
use soda_models::unet::Condition;

use crate::cache::EncodeCache;
use crate::error::TrainError;

/// What the text encoders say of a caption.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    /// `[1, 77, width]`.
    pub(crate) states: Tensor<3>,
    /// SDXL's summary, `[1, p]`.
    pub(crate) pooled: Option<Tensor<2>>,
}

/// Text states `[m, 77, width]` and, of SDXL, summaries `[m, p]`.
///
/// Each caption is read by itself, and once: a batch would add in another order, and what a caption becomes must not
/// depend on which others a cache has.
pub(crate) fn read(
    pipeline: &Pipeline,
    texts: &[String],
    cache: Option<&EncodeCache>,
) -> Result<(Tensor<3>, Option<Tensor<2>>), TrainError> {
    let mut known: HashMap<&str, Text> = HashMap::new();
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
        let Text { states: own, pooled } = known[text.as_str()].clone();
        states.push(own);
        summaries.extend(pooled);
    }
    let summaries = (!summaries.is_empty()).then(|| Tensor::cat(summaries, 0));
    Ok((Tensor::cat(states, 0), summaries))
}

fn of(pipeline: &Pipeline, text: &String) -> Text {
    let size = [pipeline.image_size(); 2];
    let condition = pipeline.condition(std::slice::from_ref(text), 0, size);
    let Condition { text: states, added } = condition.cast(DType::F32);
    Text { states, pooled: added.map(|added| added.pooled) }
}

/// What the encoders are given.
fn tokens(pipeline: &Pipeline, text: &str) -> String {
    let second = pipeline.second.as_ref().map(|second| second.tokenizer.encode(text).ids);
    format!("{:?} {second:?}", pipeline.tokenizer.encode(text).ids)
}
