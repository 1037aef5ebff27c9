//! The options of how a language model encodes prompts.

use clap::Args;
use soda_models::pipeline::PromptEncoding;

#[derive(Debug, Args)]
pub(crate) struct PromptEncodingArgs {
    /// The text encoder's hidden states that the denoiser reads, for FLUX.2 klein and Z-Image; by default
    /// those of the adapter, else of the model family (9,18,27 for FLUX.2 klein)
    #[arg(long, value_name = "I,J,...", value_delimiter = ',', allow_hyphen_values = true)]
    text_encoder_out_layers: Option<Vec<i64>>,
    /// The most tokens of a prompt, for FLUX.2 klein and Z-Image; by default that of the adapter, else 512 or
    /// the tokenizer's limit
    #[arg(long, value_name = "N")]
    max_sequence_length: Option<usize>,
}

impl PromptEncodingArgs {
    /// The encoding that the options ask for.
    pub(crate) fn encoding(&self) -> PromptEncoding {
        PromptEncoding {
            text_encoder_out_layers: self.text_encoder_out_layers.clone(),
            max_sequence_length: self.max_sequence_length,
        }
    }
}
