//! CLIP (Radford et al., arXiv 2103.00020): a text encoder and an image encoder with one joint space.
//!
//! Stable Diffusion is conditioned on the text encoder's hidden states. Text and image encoder together
//! measure whether an image shows what a prompt says. Mirrors transformers' `CLIPTextModel` and `CLIPModel`.

mod encoder;
mod model;
mod text;
mod text_embeddings;
mod vision;

pub use encoder::{Activation, Encoder, EncoderConfig, EncoderLayer, Mlp, SelfAttention};
pub use model::{ClipConfig, ClipModel};
pub use text::{
    ClipTextConfig, ClipTextModel, HiddenLayer, PromptEmbeds, TEXT_KEY_RENAMES, TextTransformer,
};
pub use text_embeddings::{NewTokens, TextEmbeddings};
pub(crate) use vision::embed_patches;
pub use vision::{ClipVisionConfig, VisionEmbeddings, VisionTransformer};
