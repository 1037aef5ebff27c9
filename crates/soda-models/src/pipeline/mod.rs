//! Text to images: the networks of a model directory in diffusers' layout, put together.
//!
//! ```text
//! prompt -> token ids -> prompt embeds
//! noise  -> (denoiser, guidance, sampler) at each timestep -> latents -> image
//! ```
//!
//! Mirrors diffusers' `StableDiffusionPipeline`, `StableDiffusionXLPipeline`, their image-to-image variants,
//! `Flux2KleinPipeline` and `ZImagePipeline`. The `model_index.json` and the configs of a directory say which
//! of them it is.

mod denoiser;
mod families;
mod family;
mod family_name;
mod generate;
mod guided_denoiser;
mod json;
mod load;
mod load_warning;
mod model;
mod model_name;
mod networks;
mod prediction_marks;
mod prompt;
mod prompt_encoding;
mod prompt_states;
mod save;
mod single_file;
mod text_encoders;
mod textual_inversion;

pub use denoiser::{Denoiser, DenoiserConfig};
pub use family::LoadOptions;
pub use generate::{GenerateConfig, InitImage};
pub use load_warning::LoadWarning;
pub use model::Pipeline;
pub use model_name::model_name;
pub use networks::Networks;
pub use prompt_encoding::PromptEncoding;
pub use prompt_states::{EncodedPrompts, PromptStates, TextEncoderUse};
pub use text_encoders::{
    ChatForm, ClipEncoders, Qwen3Encoder, SecondTextEncoder, TextEncoders, TokenIds,
};
pub use textual_inversion::TokenEmbedding;
