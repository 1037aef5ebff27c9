//! Prompts to what the denoiser is told.

use std::ops::Range;

use burn::tensor::{FloatDType, Int, Tensor};

use super::Pipeline;
use crate::clip::text::{ClipTextModel, Layer, TextStates};
use crate::unet::{AddedCondition, Condition};

/// Prompts as the text encoders read them.
#[derive(Debug, Clone)]
pub struct TextIds {
    /// Tokens of the text encoder, `[b, n]`.
    pub first: Tensor<2, Int>,
    /// Of SDXL's second, `[b, n]`.
    pub second: Option<Tensor<2, Int>>,
}

impl TextIds {
    /// The same for each tensor.
    fn each(self, f: impl Fn(Tensor<2, Int>) -> Tensor<2, Int>) -> Self {
        Self { first: f(self.first), second: self.second.map(f) }
    }

    /// Some of the prompts, in order.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Self {
        self.clone().each(|ids| ids.narrow(0, rows.start, rows.len()))
    }

    /// The prompts with these indices `[m]`.
    #[must_use]
    pub fn select(&self, indices: &Tensor<1, Int>) -> Self {
        self.clone().each(|ids| ids.select(0, indices.clone()))
    }

    /// The prompts of `self`, then those of `other`; both are of one model.
    #[must_use]
    pub fn cat(self, other: Self) -> Self {
        let cat = |a, b| Tensor::cat(vec![a, b], 0);
        Self {
            first: cat(self.first, other.first),
            second: self.second.zip(other.second).map(|(a, b)| cat(a, b)),
        }
    }

    /// On the tape of a training.
    #[must_use]
    pub fn on_tape(self) -> Self {
        self.each(Tensor::from_inner)
    }
}

/// The states that the UNet was trained on, and the summary of the last encoder.
pub(super) fn states(
    first: &ClipTextModel,
    second: Option<&ClipTextModel>,
    ids: &TextIds,
    clip_skip: usize,
) -> TextStates {
    let (Some(second), Some(second_ids)) = (second, &ids.second) else {
        return first.encode(ids.first.clone(), Layer { skip: clip_skip, normed: true });
    };
    // SDXL's states are those before the last layer, without the last norm.
    let layer = Layer { skip: clip_skip + 1, normed: false };
    let first = first.encode(ids.first.clone(), layer);
    let second = second.encode(second_ids.clone(), layer);
    let hidden = Tensor::cat(vec![first.hidden, second.hidden], 2);
    TextStates { hidden, pooled: second.pooled }
}

impl Pipeline {
    /// The tokens of prompts. A prompt that is too long is cut.
    pub fn token_ids<S: AsRef<str>>(&self, prompts: &[S]) -> TextIds {
        let second = self.second.as_ref();
        TextIds {
            first: self.tokenizer.encode_batch(prompts, &self.device),
            second: second.map(|second| second.tokenizer.encode_batch(prompts, &self.device)),
        }
    }

    /// Text states of prompts, `[n, 77, d]`. A prompt that is too long is cut.
    pub fn encode_prompts(&self, prompts: &[String]) -> Tensor<3> {
        self.encode_texts(prompts, 0).hidden
    }

    /// Whether the end of a prompt does not reach the denoiser.
    pub fn is_cut(&self, prompt: &str) -> bool {
        let second = self.second.as_ref().is_some_and(|s| s.tokenizer.encode(prompt).truncated);
        second || self.tokenizer.encode(prompt).truncated
    }

    /// What the denoiser is told of prompts for pictures of `height` and `width` pixels.
    ///
    /// # Panics
    ///
    /// If a text encoder has no more than `clip_skip` layers.
    pub fn condition(
        &self,
        prompts: &[String],
        clip_skip: usize,
        [height, width]: [usize; 2],
    ) -> Condition {
        let TextStates { hidden, pooled } = self.encode_texts(prompts, clip_skip);
        let added = self.second.as_ref().map(|_| {
            let (height, width) = (height as f32, width as f32);
            let ids = [[height, width, 0.0, 0.0, height, width]];
            AddedCondition {
                pooled,
                time_ids: Tensor::from_floats(ids, &self.device).repeat_dim(0, prompts.len()),
            }
        });
        Condition { text: hidden, added }
    }

    /// The condition of the negative prompt, once. As in diffusers, layers are skipped for the
    /// prompts only.
    pub(super) fn negative(&self, prompt: &str, size: [usize; 2]) -> Condition {
        let mut condition = self.condition(&[prompt.to_owned()], 0, size);
        let zeros = self.second.as_ref().is_some_and(|second| second.zeros_for_empty_prompt);
        if prompt.is_empty() && zeros {
            condition.text = condition.text.zeros_like();
            if let Some(added) = &mut condition.added {
                added.pooled = added.pooled.zeros_like();
            }
        }
        condition
    }

    fn encode_texts(&self, prompts: &[String], clip_skip: usize) -> TextStates {
        let second = self.second.as_ref().map(|second| &second.text_encoder);
        states(&self.text_encoder, second, &self.token_ids(prompts), clip_skip)
    }
}

impl Condition {
    /// In another precision; the time ids stay exact.
    pub fn cast(self, dtype: impl Into<FloatDType> + Copy) -> Self {
        let added = self
            .added
            .map(|added| AddedCondition { pooled: added.pooled.cast(dtype.into()), ..added });
        Self { text: self.text.cast(dtype.into()), added }
    }
}
