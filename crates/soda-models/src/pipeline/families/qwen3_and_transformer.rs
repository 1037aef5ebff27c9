//! What the families share that have Qwen3 as text encoder and a transformer as denoiser.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use tracing::info_span;

use crate::config;
use crate::error::ModelError;
use crate::pipeline::denoiser::{Denoiser, DenoiserConfig};
use crate::pipeline::family::{Found, LoadOptions, LoadedNetworks, TRANSFORMERS};
use crate::pipeline::prompt_encoding::PromptEncoding;
use crate::pipeline::prompt_states::{PromptStates, TextEncoderUse};
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
    chats: ChatForm,
    max_sequence_length: usize,
    has_default_encoding: bool,
}

impl Qwen3Configs {
    /// Reads everything but the weights of the model in `dir`. `states` are the indices of the hidden states
    /// that the family reads, unless `encoding` has others.
    pub(super) fn read(
        dir: &Path,
        states: &[i64],
        chats: ChatForm,
        encoding: &PromptEncoding,
    ) -> Result<Self, ModelError> {
        let config: Qwen3Config = config::read(&dir.join("text_encoder/config.json"))?;
        let tokenizer_dir = dir.join("tokenizer");
        let tokenizer = QwenTokenizer::from_dir(&tokenizer_dir)?;
        tokenizer.check_fits(&tokenizer_dir, &config)?;
        let default_states = config.hidden_states(states)?;
        let states = match &encoding.text_encoder_out_layers {
            Some(layers) => config.hidden_states(layers)?,
            None => default_states.clone(),
        };
        let most = tokenizer.max_length().min(QwenTokenizer::PIPELINE_LENGTH);
        let least = tokenizer.encode("", chats.thinking, usize::MAX).ids.len() + 1;
        let max_sequence_length = encoding.max_sequence_length.unwrap_or(most);
        if !(least..=most).contains(&max_sequence_length) {
            return Err(ModelError::InvalidRequest {
                field: "max_sequence_length",
                value: max_sequence_length.to_string(),
                expected: format!("it must be from {least}, a chat of one word, to {most} tokens"),
            });
        }
        let has_default_encoding = states == default_states && max_sequence_length == most;
        Ok(Self { config, states, tokenizer, chats, max_sequence_length, has_default_encoding })
    }

    /// Width of the states of a token.
    pub(super) fn width(&self) -> usize {
        self.config.hidden_size * self.states.indices().len()
    }

    /// The most tokens of a prompt.
    pub(super) fn most_tokens(&self) -> usize {
        self.max_sequence_length
    }
}

/// The open weight files of both networks, with the networks' keys.
pub(crate) struct Qwen3AndTransformer {
    text: Checkpoint,
    transformer: Checkpoint,
}

impl Qwen3AndTransformer {
    /// Opens the weight files.
    pub(super) fn open(found: &mut Found<'_>) -> Result<Self, ModelError> {
        let text = found.open("text_encoder", TRANSFORMERS)?;
        Ok(Self { text, transformer: found.open_denoiser(Denoiser::TRANSFORMER)? })
    }

    /// Opens the weight file of the text encoder, for a transformer from another file.
    pub(super) fn with_transformer(
        found: &mut Found<'_>,
        transformer: Checkpoint,
    ) -> Result<Self, ModelError> {
        Ok(Self { text: found.open("text_encoder", TRANSFORMERS)?, transformer })
    }

    /// Loads both networks. `transformer` is one with random weights, of the config `denoiser_config`.
    pub(super) fn load<M: Module + Into<Denoiser>>(
        self,
        text: Qwen3Configs,
        (transformer, denoiser_config): (M, DenoiserConfig),
        options: &LoadOptions,
        device: &Device,
    ) -> Result<LoadedNetworks, ModelError> {
        let Qwen3Configs {
            config,
            states,
            tokenizer,
            chats,
            max_sequence_length,
            has_default_encoding,
        } = text;
        let precision = options.text_precision();
        let text_encoder = info_span!("text_encoder")
            .in_scope(|| qwen3::load_opened(self.text, &config, &states, &precision, device))?;
        let mut text = Qwen3Encoder {
            tokenizer,
            states: PromptStates::Encoder(text_encoder),
            out_layers: states.indices().to_vec(),
            chats,
            max_sequence_length,
            has_default_encoding,
        };
        if let TextEncoderUse::EncodeAndFree { prompts, hash } = &options.text_encoder {
            text = info_span!("encode prompts")
                .in_scope(|| text.encode_and_free(prompts.clone(), *hash, device));
            // The memory of the text encoder is free for the denoiser.
            device.memory_cleanup();
        }
        let precision = options.denoiser_precision();
        let denoiser = info_span!("transformer")
            .in_scope(|| self.transformer.load_into_mixed(transformer, &precision))?;
        Ok(LoadedNetworks {
            text: TextEncoders::Qwen3(Box::new(text)),
            denoiser: denoiser.into(),
            denoiser_config,
        })
    }
}
