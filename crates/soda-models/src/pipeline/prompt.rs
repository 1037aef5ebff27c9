//! Prompts to conditions of the denoiser.

use burn::tensor::Tensor;

use super::model::Pipeline;
use super::text_encoders::TokenIds;
use crate::condition::Condition;
use crate::error::ModelError;

impl Pipeline {
    /// Tokenizes prompts. A prompt that is too long is truncated.
    pub fn tokenize<S: AsRef<str>>(&self, prompts: &[S]) -> TokenIds {
        self.text.tokenize(prompts, &self.device)
    }

    /// Encodes prompts. Returns the text encoders' hidden states, `[n, m, d]` for `m` tokens. A prompt that
    /// is too long is truncated.
    pub fn encode_prompts(&self, prompts: &[String]) -> Tensor<3> {
        self.condition(prompts, 0, [self.image_size(); 2]).text
    }

    /// Whether `prompt` is too long, so that its end does not reach the denoiser.
    pub fn is_truncated(&self, prompt: &str) -> bool {
        self.text.is_truncated(prompt)
    }

    /// Checks that a prompt can be encoded.
    ///
    /// # Errors
    ///
    /// [`ModelError::InvalidRequest`] if the text encoder was freed and has not encoded this prompt before,
    /// see [`TextEncoderUse`](super::TextEncoderUse).
    pub fn check_prompt(&self, prompt: &str) -> Result<(), ModelError> {
        if self.text.can_encode(prompt) {
            return Ok(());
        }
        Err(ModelError::InvalidRequest {
            field: "prompt",
            value: prompt.to_owned(),
            expected: "the text encoder was freed after it had encoded other prompts".to_owned(),
        })
    }

    /// Makes the denoiser's condition of prompts, for images of `height` x `width` pixels.
    ///
    /// `clip_skip` layers of the text encoders are skipped at the end.
    ///
    /// # Panics
    ///
    /// If a text encoder has no more than `clip_skip` layers, or [`check_prompt`](Self::check_prompt)
    /// refuses a prompt.
    pub fn condition(&self, prompts: &[String], clip_skip: usize, size: [usize; 2]) -> Condition {
        self.text.condition(prompts, clip_skip, size, &self.device)
    }

    /// Makes the condition of the negative prompt, one sample. As in diffusers, `clip_skip` does not apply to
    /// it.
    pub(super) fn negative(&self, prompt: &str, size: [usize; 2]) -> Condition {
        let mut condition = self.condition(&[prompt.to_owned()], 0, size);
        if prompt.is_empty() && self.text.zeros_for_empty_prompt() {
            condition.text = condition.text.zeros_like();
            if let Some(added) = &mut condition.added {
                added.pooled = added.pooled.zeros_like();
            }
        }
        condition
    }
}
