//! Prompts to conditions of the denoiser.

use std::ops::Range;

use burn::tensor::{Int, Tensor};

use super::model::Pipeline;
use crate::clip::{ClipTextModel, HiddenLayer, PromptEmbeds};
use crate::condition::{AddedCondition, Condition};

/// Token ids of a batch of prompts, for all text encoders.
#[derive(Debug, Clone)]
pub struct TokenIds {
    /// Token ids for the text encoder, `[b, n]`.
    pub first: Tensor<2, Int>,
    /// Token ids for SDXL's second text encoder, `[b, n]`.
    pub second: Option<Tensor<2, Int>>,
}

impl TokenIds {
    /// Applies `f` to each tensor.
    fn map(self, f: impl Fn(Tensor<2, Int>) -> Tensor<2, Int>) -> Self {
        Self { first: f(self.first), second: self.second.map(f) }
    }

    /// Selects a contiguous range of prompts.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Self {
        self.clone().map(|ids| ids.narrow(0, rows.start, rows.len()))
    }

    /// Selects the prompts with the given indices `[m]`.
    #[must_use]
    pub fn select(&self, indices: &Tensor<1, Int>) -> Self {
        self.clone().map(|ids| ids.select(0, indices.clone()))
    }

    /// Concatenates the prompts of `self` and of `other`, in this order. Both must belong to one model.
    #[must_use]
    pub fn cat(self, other: Self) -> Self {
        let cat = |a, b| Tensor::cat(vec![a, b], 0);
        Self {
            first: cat(self.first, other.first),
            second: self.second.zip(other.second).map(|(a, b)| cat(a, b)),
        }
    }

    /// Moves the ids to the autodiff device, for text encoders that are trained.
    #[must_use]
    pub fn autodiff(self) -> Self {
        self.map(Tensor::from_inner)
    }
}

/// Encodes token ids as the denoiser was trained on them. The pooled output is that of the last text encoder.
pub(super) fn states(
    first: &ClipTextModel,
    second: Option<&ClipTextModel>,
    ids: &TokenIds,
    clip_skip: usize,
) -> PromptEmbeds {
    let (Some(second), Some(second_ids)) = (second, &ids.second) else {
        return first.encode(ids.first.clone(), HiddenLayer { clip_skip, final_norm: true });
    };
    // SDXL uses the states before the last layer, without the final norm.
    let layer = HiddenLayer { clip_skip: clip_skip + 1, final_norm: false };
    let first = first.encode(ids.first.clone(), layer);
    let second = second.encode(second_ids.clone(), layer);
    let hidden = Tensor::cat(vec![first.hidden, second.hidden], 2);
    PromptEmbeds { hidden, pooled: second.pooled }
}

impl Pipeline {
    /// Tokenizes prompts. A prompt that is too long is truncated.
    pub fn tokenize<S: AsRef<str>>(&self, prompts: &[S]) -> TokenIds {
        let second = self.second_text_encoder.as_ref();
        TokenIds {
            first: self.tokenizer.encode_batch(prompts, &self.device),
            second: second.map(|second| second.tokenizer.encode_batch(prompts, &self.device)),
        }
    }

    /// Encodes prompts. Returns the text encoders' hidden states, `[n, 77, d]`. A prompt that is too long is
    /// truncated.
    pub fn encode_prompts(&self, prompts: &[String]) -> Tensor<3> {
        self.encode_texts(prompts, 0).hidden
    }

    /// Whether `prompt` is too long, so that its end does not reach the denoiser.
    pub fn is_truncated(&self, prompt: &str) -> bool {
        let second =
            self.second_text_encoder.as_ref().is_some_and(|s| s.tokenizer.encode(prompt).truncated);
        second || self.tokenizer.encode(prompt).truncated
    }

    /// Makes the denoiser's condition of prompts, for images of `height` x `width` pixels.
    ///
    /// `clip_skip` layers of the text encoders are skipped at the end.
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
        let PromptEmbeds { hidden, pooled } = self.encode_texts(prompts, clip_skip);
        let added = self.second_text_encoder.as_ref().map(|_| {
            let (height, width) = (height as f32, width as f32);
            let ids = [[height, width, 0.0, 0.0, height, width]];
            AddedCondition {
                pooled,
                time_ids: Tensor::from_floats(ids, &self.device).repeat_dim(0, prompts.len()),
            }
        });
        Condition { text: hidden, added }
    }

    /// Makes the condition of the negative prompt, one sample. As in diffusers, `clip_skip` does not apply to
    /// it.
    pub(super) fn negative(&self, prompt: &str, size: [usize; 2]) -> Condition {
        let mut condition = self.condition(&[prompt.to_owned()], 0, size);
        let zeros = self
            .second_text_encoder
            .as_ref()
            .is_some_and(|second| second.force_zeros_for_empty_prompt);
        if prompt.is_empty() && zeros {
            condition.text = condition.text.zeros_like();
            if let Some(added) = &mut condition.added {
                added.pooled = added.pooled.zeros_like();
            }
        }
        condition
    }

    fn encode_texts(&self, prompts: &[String], clip_skip: usize) -> PromptEmbeds {
        let second = self.second_text_encoder.as_ref().map(|second| &second.text_encoder);
        states(&self.text_encoder, second, &self.tokenize(prompts), clip_skip)
    }
}
