//! The number of tokens of a caption, and how many of them a base model encodes.

use std::path::Path;

use soda_models::ModelError;
use soda_models::pipeline::{ChatForm, DenoiserConfig};
use soda_models::tokenizer::{QwenTokenizer, Thinking, Tokenizer};

/// The tokenizers of a base model, without its text encoders.
#[derive(Debug, Clone)]
pub enum CaptionTokenizers {
    /// The one or two tokenizers of Stable Diffusion.
    Clip(Vec<Tokenizer>),
    /// The tokenizer of FLUX.2 klein and Z-Image, and whether their chats ask the model to think.
    Qwen(Box<QwenTokenizer>, Thinking),
}

impl CaptionTokenizers {
    /// Reads the tokenizers of the model in `base`, a directory in diffusers' layout.
    ///
    /// # Errors
    /// Returns the error of a file that is missing, broken or not supported.
    pub fn from_dir(base: &Path) -> Result<Self, ModelError> {
        let folder = base.join("tokenizer");
        let qwen = |form: ChatForm| -> Result<Self, ModelError> {
            Ok(Self::Qwen(Box::new(QwenTokenizer::from_dir(&folder)?), form.thinking))
        };
        match DenoiserConfig::read(base)? {
            DenoiserConfig::Unet(_) => {
                let second = base.join("tokenizer_2");
                let folders = [Some(folder.clone()), second.is_dir().then_some(second)];
                let tokenizers = folders.iter().flatten().map(|folder| Tokenizer::from_dir(folder));
                Ok(Self::Clip(tokenizers.collect::<Result<_, _>>()?))
            }
            DenoiserConfig::Flux2(_) => qwen(ChatForm::FLUX2_KLEIN),
            DenoiserConfig::ZImage(_) => qwen(ChatForm::Z_IMAGE),
        }
    }

    /// The number of tokens of `caption` and the most that are encoded, if the caption is too long. Start and
    /// end tokens of CLIP do not count; the chat of a language model does.
    pub fn excess(&self, caption: &str) -> Option<(usize, usize)> {
        let (tokens, limit) = match self {
            Self::Clip(tokenizers) => {
                let counts = tokenizers.iter().map(|tokenizer| {
                    let limit = tokenizer.max_length().saturating_sub(2);
                    (tokenizer.encode_without_special_tokens(caption).len(), limit)
                });
                counts.max_by_key(|(tokens, limit)| tokens.saturating_sub(*limit))?
            }
            Self::Qwen(tokenizer, thinking) => {
                let tokens = tokenizer.encode(caption, *thinking, usize::MAX).ids.len();
                (tokens, QwenTokenizer::PIPELINE_LENGTH.min(tokenizer.max_length()))
            }
        };
        (tokens > limit).then_some((tokens, limit))
    }
}
