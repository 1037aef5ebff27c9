//! Images and captions, from the data folder to the batch of a step.

pub(crate) mod augment;
pub(crate) mod batch;
pub(crate) mod buckets;
pub(crate) mod cache;
#[cfg(test)]
mod cache_tests;
pub(crate) mod caption_edit;
pub(crate) mod captions;
pub(crate) mod check;
pub(crate) mod dataset;
pub(crate) mod encode;
pub(crate) mod encoded_caption;
pub(crate) mod encoded_dataset;
pub(crate) mod folder;
pub(crate) mod latents;
pub(crate) mod masks;
mod metadata;
pub(crate) mod prior;
pub(crate) mod prompts;
pub(crate) mod rng;
pub(crate) mod sampler;
pub(crate) mod text_file;
