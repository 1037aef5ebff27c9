//! CLIP (Radford et al., arXiv 2103.00020): a text and a picture encoder with one joint space.
//!
//! Stable Diffusion is conditioned on the text encoder's hidden states; the two together judge
//! whether a picture shows what a prompt says. Mirrors transformers' `CLIPTextModel` and
//! `CLIPModel`.

pub mod embeddings;
pub mod encoder;
pub mod model;
pub(crate) mod pretrained;
pub mod text;
pub mod vision;
