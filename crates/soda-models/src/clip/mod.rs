//! CLIP (Radford et al., arXiv 2103.00020): a text and a picture encoder with one joint space.
//!
//! Stable Diffusion is conditioned on the text encoder's hidden states; the two together judge
//! whether a picture shows what a prompt says. Mirrors transformers' `CLIPTextModel`,
//! `CLIPVisionModel` and `CLIPModel`.

mod encoder;
mod fields;
mod model;
mod text;
mod vision;

pub use encoder::{Activation, Encoder, EncoderConfig, EncoderLayer, Mlp, SelfAttention};
pub use model::{ClipConfig, ClipModel};
pub use text::{ClipTextConfig, ClipTextModel, RENAMED, TextEmbeddings, TextTransformer};
pub use vision::{ClipVisionConfig, VisionEmbeddings, VisionTransformer};

pub(crate) use encoder::multi_head;
