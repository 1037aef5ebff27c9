//! The denoising transformer of FLUX.2 klein.

mod config;
mod double_block;
mod model;
mod modulation;
mod original_names;
mod single_block;
mod stages;

pub use config::Flux2Config;
pub use double_block::{DoubleBlock, DoubleModulation, GatedMlp, JointAttention, Streams};
pub use model::{Flux2Transformer, TimeEmbedding};
pub use modulation::{AdaLayerNorm, LayerModulation, Modulation};
pub use original_names::ORIGINAL_NAMES;
pub use single_block::{ParallelAttention, SingleBlock};
pub use stages::{Flux2Shared, Flux2Stage};
