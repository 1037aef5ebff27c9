//! Prompts to what the denoiser is told.

use burn::tensor::{FloatDType, Tensor};

use super::Pipeline;
use crate::clip::text::{Layer, TextStates};
use crate::unet::{AddedCondition, Condition};

impl Pipeline {
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

    /// The states that the UNet was trained on, and the summary of the last encoder.
    fn encode_texts(&self, prompts: &[String], clip_skip: usize) -> TextStates {
        let ids = self.tokenizer.encode_batch(prompts, &self.device);
        let Some(second) = &self.second else {
            return self.text_encoder.encode(ids, Layer { skip: clip_skip, normed: true });
        };
        // SDXL's states are those before the last layer, without the last norm.
        let layer = Layer { skip: clip_skip + 1, normed: false };
        let first = self.text_encoder.encode(ids, layer);
        let ids = second.tokenizer.encode_batch(prompts, &self.device);
        let second = second.text_encoder.encode(ids, layer);
        let hidden = Tensor::cat(vec![first.hidden, second.hidden], 2);
        TextStates { hidden, pooled: second.pooled }
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
