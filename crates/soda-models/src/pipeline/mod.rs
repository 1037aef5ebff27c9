//! Text to images: the networks of a model directory in diffusers' layout, put together.
//!
//! ```text
//! prompt -> token ids -> prompt embeds
//! noise  -> (denoiser, guidance, sampler) at each timestep -> latents -> image
//! ```
//!
//! Mirrors diffusers' `StableDiffusionPipeline`, `StableDiffusionXLPipeline` and their image-to-image
//! variants. The configs of a directory say which of them it is.

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
mod save;
mod single_file;
mod textual_inversion;

pub use generate::{GenerateConfig, InitImage};
pub use load::{DenoiserPrecision, LoadOptions};
pub use load_warning::LoadWarning;
pub use model::{Pipeline, SecondTextEncoder};
pub use model_name::model_name;
pub use networks::Networks;
pub use prompt::TokenIds;
pub use textual_inversion::TokenEmbedding;
