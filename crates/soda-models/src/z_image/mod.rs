//! The denoising transformer of Z-Image.

mod block;
mod by_patch;
mod config;
mod final_layer;
mod model;
mod original_names;
mod sequence;
mod stages;

pub use block::{FeedForward, SelfAttention, ZImageBlock};
pub use by_patch::ByPatch;
pub use config::ZImageConfig;
pub use final_layer::FinalLayer;
pub use model::{TimeEmbedder, ZImageTransformer};
pub use original_names::ORIGINAL_NAMES;
pub use stages::{ZImageShared, ZImageStage};
