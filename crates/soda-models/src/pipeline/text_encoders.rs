//! The text encoders of a pipeline with their tokenizers.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor};
use soda_kernels::with_copies_ahead;

use super::prompt_states::{EncodedPrompts, PromptStates, weights_hash};
use crate::clip::{ClipTextModel, HiddenLayer, PromptEmbeds};
use crate::condition::{AddedCondition, Condition};
use crate::tokenizer::{PaddedPrompts, QwenEncoding, QwenTokenizer, Thinking, Tokenizer};

/// The text encoders of a model family.
#[derive(Debug, Clone)]
pub enum TextEncoders {
    /// The one or two text encoders of Stable Diffusion.
    Clip(Box<ClipEncoders>),
    /// The language model that FLUX.2 klein and Z-Image take hidden states of.
    Qwen3(Box<Qwen3Encoder>),
}

/// The text encoders of Stable Diffusion.
#[derive(Debug, Clone)]
pub struct ClipEncoders {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The text encoder.
    pub text_encoder: ClipTextModel,
    /// The second text encoder of SDXL.
    pub second: Option<SecondTextEncoder>,
}

/// SDXL's second text encoder. Its hidden states are concatenated with those of the first one.
#[derive(Debug, Clone)]
pub struct SecondTextEncoder {
    /// The tokenizer. Its padding differs from the first one's.
    pub tokenizer: Tokenizer,
    /// The text encoder, which also gives SDXL's pooled output.
    pub text_encoder: ClipTextModel,
    /// Whether an empty negative prompt is encoded as zeros instead of as an empty text.
    pub force_zeros_for_empty_prompt: bool,
}

/// The text encoder of FLUX.2 klein and of Z-Image. A prompt is the first message of a chat.
#[derive(Debug, Clone)]
pub struct Qwen3Encoder {
    /// The tokenizer.
    pub tokenizer: QwenTokenizer,
    /// The text encoder, or what it made of the prompts before it was freed.
    pub states: PromptStates,
    /// The hidden states that are read, by index.
    pub out_layers: Vec<usize>,
    /// The form of the chats.
    pub chats: ChatForm,
    /// The most tokens of a chat, to which prompts are padded where the denoiser sees the padding.
    pub max_sequence_length: usize,
    /// Whether the states that are read and the most tokens are those of the model family.
    pub has_default_encoding: bool,
}

/// How prompts become chats, and what a denoiser sees of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChatForm {
    /// Whether the language model is asked to think.
    pub thinking: Thinking,
    /// Whether the denoiser sees the padding of a chat.
    pub sees_padding: bool,
}

impl ChatForm {
    /// The form that FLUX.2 klein was trained on.
    pub const FLUX2_KLEIN: Self = Self { thinking: Thinking::Disabled, sees_padding: true };

    /// The form that Z-Image was trained on.
    pub const Z_IMAGE: Self = Self { thinking: Thinking::Enabled, sees_padding: false };
}

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

impl ClipEncoders {
    /// Tokenizes prompts. A prompt that is too long is truncated.
    fn tokenize<S: AsRef<str>>(&self, prompts: &[S], device: &Device) -> TokenIds {
        let second = self.second.as_ref();
        TokenIds {
            first: self.tokenizer.encode_batch(prompts, device),
            second: second.map(|second| second.tokenizer.encode_batch(prompts, device)),
        }
    }

    fn encode(&self, prompts: &[String], clip_skip: usize, device: &Device) -> PromptEmbeds {
        let second = self.second.as_ref().map(|second| &second.text_encoder);
        states(&self.text_encoder, second, &self.tokenize(prompts, device), clip_skip)
    }

    fn condition(
        &self,
        prompts: &[String],
        clip_skip: usize,
        [height, width]: [usize; 2],
        device: &Device,
    ) -> Condition {
        let PromptEmbeds { hidden, pooled } = self.encode(prompts, clip_skip, device);
        let added = self.second.as_ref().map(|_| {
            let (height, width) = (height as f32, width as f32);
            let ids = [[height, width, 0.0, 0.0, height, width]];
            AddedCondition {
                pooled,
                time_ids: Tensor::from_floats(ids, device).repeat_dim(0, prompts.len()),
            }
        });
        Condition { text: hidden, lengths: None, added }
    }

    /// The layers of the smallest text encoder, and how many of them are skipped in any case.
    fn layers(&self) -> (usize, usize) {
        let layers = |encoder: &ClipTextModel| encoder.text_model.encoder.layers.len();
        match &self.second {
            None => (layers(&self.text_encoder), 0),
            // SDXL skips the last layer by itself.
            Some(second) => (layers(&self.text_encoder).min(layers(&second.text_encoder)), 1),
        }
    }
}

impl Qwen3Encoder {
    /// The token ids of one prompt.
    fn tokenize(&self, prompt: &str) -> QwenEncoding {
        self.tokenizer.encode(prompt, self.chats.thinking, self.max_sequence_length)
    }

    /// The token ids of prompts, padded to `length` tokens.
    fn tokenize_all<S: AsRef<str>>(
        &self,
        prompts: &[S],
        length: usize,
        device: &Device,
    ) -> PaddedPrompts {
        self.tokenizer.encode_batch(prompts, self.chats.thinking, length, device)
    }

    /// Encodes prompts as the denoiser was trained on them.
    fn condition(&self, prompts: &[String], device: &Device) -> Condition {
        let lengths = (!self.chats.sees_padding).then(|| {
            prompts.iter().map(|prompt| self.tokenize(prompt).ids.len()).collect::<Vec<_>>()
        });
        let text_encoder = match &self.states {
            PromptStates::Encoder(text_encoder) => text_encoder,
            PromptStates::Encoded(encoded) => {
                return encoded.condition(prompts, self.chats.sees_padding, device);
            }
        };
        // The states of a token do not depend on what follows it.
        let longest = lengths.as_ref().and_then(|lengths| lengths.iter().copied().max());
        let length = longest.unwrap_or(self.max_sequence_length);
        let PaddedPrompts { ids, mask } = self.tokenize_all(prompts, length, device);
        let text = with_copies_ahead(|| text_encoder.forward(ids, mask));
        Condition { text, lengths, added: None }
    }

    /// Encodes prompts one by one and frees the text encoder. `hash` is as in [`TextEncoderUse`].
    ///
    /// [`TextEncoderUse`]: super::TextEncoderUse
    pub(super) fn encode_and_free(
        mut self,
        prompts: Vec<String>,
        hash: bool,
        device: &Device,
    ) -> Self {
        let hash = if hash { self.weights_hash() } else { String::new() };
        let encode = |prompt: &str| self.condition(&[prompt.to_owned()], device).text;
        self.states = PromptStates::Encoded(EncodedPrompts::new(prompts, hash, encode));
        self
    }

    /// The SHA-256 of the text encoder's weights. Empty for one that was freed and not hashed.
    pub fn weights_hash(&self) -> String {
        match &self.states {
            PromptStates::Encoder(text_encoder) => weights_hash(text_encoder),
            PromptStates::Encoded(encoded) => encoded.hash().to_owned(),
        }
    }
}

impl TextEncoders {
    /// Tokenizes prompts. A prompt that is too long is truncated.
    pub(super) fn tokenize<S: AsRef<str>>(&self, prompts: &[S], device: &Device) -> TokenIds {
        match self {
            Self::Clip(clip) => clip.tokenize(prompts, device),
            Self::Qwen3(qwen3) => {
                let length = qwen3.max_sequence_length;
                let PaddedPrompts { ids, .. } = qwen3.tokenize_all(prompts, length, device);
                TokenIds { first: ids, second: None }
            }
        }
    }

    /// Whether there is a text encoder. Otherwise it was freed, and the prompts that it encoded are known.
    pub fn has_encoder(&self) -> bool {
        match self {
            Self::Clip(_) => true,
            Self::Qwen3(qwen3) => matches!(qwen3.states, PromptStates::Encoder(_)),
        }
    }

    /// Whether the states of a prompt can be had: the text encoder was not freed, or has encoded it before.
    pub fn can_encode(&self, prompt: &str) -> bool {
        match self {
            Self::Clip(_) => true,
            Self::Qwen3(qwen3) => match &qwen3.states {
                PromptStates::Encoder(_) => true,
                PromptStates::Encoded(encoded) => encoded.has(prompt),
            },
        }
    }

    /// Whether `prompt` is too long, so that its end does not reach the denoiser.
    pub(super) fn is_truncated(&self, prompt: &str) -> bool {
        match self {
            Self::Clip(clip) => {
                let second = clip.second.as_ref();
                second.is_some_and(|second| second.tokenizer.encode(prompt).truncated)
                    || clip.tokenizer.encode(prompt).truncated
            }
            Self::Qwen3(qwen3) => qwen3.tokenize(prompt).truncated,
        }
    }

    /// Makes the denoiser's condition of prompts, for images of `height` x `width` pixels. Panics if a text
    /// encoder has no more than `clip_skip` layers.
    pub(super) fn condition(
        &self,
        prompts: &[String],
        clip_skip: usize,
        size: [usize; 2],
        device: &Device,
    ) -> Condition {
        match self {
            Self::Clip(clip) => clip.condition(prompts, clip_skip, size, device),
            Self::Qwen3(qwen3) => qwen3.condition(prompts, device),
        }
    }

    /// Whether the denoiser sees the padding of prompts. Otherwise a condition has
    /// [`lengths`](Condition::lengths).
    pub fn shows_padding(&self) -> bool {
        match self {
            Self::Clip(_) => true,
            Self::Qwen3(qwen3) => qwen3.chats.sees_padding,
        }
    }

    /// Whether an empty negative prompt is encoded as zeros.
    pub(super) fn zeros_for_empty_prompt(&self) -> bool {
        self.clip()
            .and_then(|clip| clip.second.as_ref())
            .is_some_and(|second| second.force_zeros_for_empty_prompt)
    }

    /// The text encoders of Stable Diffusion. `None` for other families.
    pub fn clip(&self) -> Option<&ClipEncoders> {
        match self {
            Self::Clip(clip) => Some(clip),
            Self::Qwen3(_) => None,
        }
    }

    /// The text encoders of Stable Diffusion, to change them. `None` for other families.
    pub fn clip_mut(&mut self) -> Option<&mut ClipEncoders> {
        match self {
            Self::Clip(clip) => Some(clip),
            Self::Qwen3(_) => None,
        }
    }

    /// The token ids of a prompt in each tokenizer.
    pub fn token_ids(&self, prompt: &str) -> Vec<Vec<u32>> {
        match self {
            Self::Clip(clip) => {
                let second = clip.second.as_ref().map(|second| &second.tokenizer);
                let tokenizers = std::iter::once(&clip.tokenizer).chain(second);
                tokenizers.map(|tokenizer| tokenizer.encode(prompt).ids).collect()
            }
            Self::Qwen3(qwen3) => vec![qwen3.tokenize(prompt).ids],
        }
    }

    /// Refuses to skip more layers than there are. Returns what is expected.
    pub(super) fn check_clip_skip(&self, clip_skip: usize) -> Result<(), String> {
        match self {
            Self::Clip(clip) => {
                let (layers, own) = clip.layers();
                if clip_skip + own >= layers {
                    return Err(format!(
                        "the text encoder has {layers} layers, of which one must stay"
                    ));
                }
                Ok(())
            }
            Self::Qwen3(_) if clip_skip > 0 => {
                Err("it must be 0, since this model has no CLIP text encoder".to_owned())
            }
            Self::Qwen3(_) => Ok(()),
        }
    }
}
