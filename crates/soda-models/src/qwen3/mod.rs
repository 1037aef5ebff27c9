//! Qwen3 (Yang et al., arXiv 2505.09388): a language model whose hidden states condition a denoiser.
//!
//! Only the layers below the highest hidden state that is asked for are loaded and run, and never the head
//! that predicts words. FLUX.2 klein stacks three hidden states, and Z-Image reads one. Mirrors transformers'
//! `Qwen3Model`, which is a part of `Qwen3ForCausalLM`.

mod attention;
mod config;
mod layer;
mod load;
mod model;
mod norm;
mod rotary;

pub use attention::Attention;
pub use config::{HiddenStates, Qwen3Config, RopeParameters, RopeType};
pub use layer::{DecoderLayer, Mlp};
pub use load::load;
pub(crate) use load::load_opened;
pub use model::{LanguageModel, Qwen3TextModel};
