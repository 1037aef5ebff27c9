//! The text side of the families with Qwen3 as text encoder.

use std::path::Path;

use burn::tensor::Device;
use tracing::info_span;

use crate::config;
use crate::error::ModelError;
use crate::pipeline::family::LoadOptions;
use crate::pipeline::text_encoders::{ChatForm, Qwen3Encoder, TextEncoders};
use crate::qwen3::{self, HiddenStates, Qwen3Config};
use crate::tokenizer::QwenTokenizer;
use crate::weights::Checkpoint;

/// The config, the states that are read, and the tokenizer.
#[derive(Debug)]
pub(super) struct Qwen3Configs {
    config: Qwen3Config,
    states: HiddenStates,
    tokenizer: QwenTokenizer,
}

impl Qwen3Configs {
    /// Reads everything but the weights of the model in `dir`, for the hidden states with these indices.
    pub(super) fn read(dir: &Path, states: &[i64]) -> Result<Self, ModelError> {
        let config: Qwen3Config = config::read(&dir.join("text_encoder/config.json"))?;
        let tokenizer_dir = dir.join("tokenizer");
        let tokenizer = QwenTokenizer::from_dir(&tokenizer_dir)?;
        tokenizer.check_fits(&tokenizer_dir, &config)?;
        let states = config.hidden_states(states)?;
        Ok(Self { config, states, tokenizer })
    }

    /// Width of the states of a token.
    pub(super) fn width(&self) -> usize {
        self.config.hidden_size * self.states.indices().len()
    }

    /// The most tokens of a prompt.
    pub(super) fn most_tokens(&self) -> usize {
        self.tokenizer.max_length().min(QwenTokenizer::PIPELINE_LENGTH)
    }

    /// Loads the text encoder.
    pub(super) fn load(
        self,
        weights: Checkpoint,
        chats: ChatForm,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<TextEncoders, ModelError> {
        let Self { config, states, tokenizer } = self;
        let text_encoder = info_span!("text_encoder")
            .in_scope(|| qwen3::load_opened(weights, &config, &states, options.dtype, device))?;
        Ok(TextEncoders::Qwen3(Box::new(Qwen3Encoder { tokenizer, text_encoder, chats })))
    }
}
