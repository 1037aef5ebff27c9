//! The model families: what their directories hold, and how it is loaded.

mod flux2_klein;
mod qwen3_and_transformer;
mod stable_diffusion;
mod transformer_file;
mod z_image;

pub(super) use flux2_klein::Flux2KleinConfigs;
pub(super) use stable_diffusion::{StableDiffusionConfigs, StableDiffusionWeights};
pub(super) use transformer_file::TransformerFile;
pub(super) use z_image::ZImageConfigs;
