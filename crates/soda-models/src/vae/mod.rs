//! The autoencoder between images and latents.

mod config;
mod decoder;
mod encoder;
mod mid;
mod model;
mod statistics;
mod tiling;

pub use config::{DecoderBlockType, EncoderBlockType, VaeClass, VaeConfig};
pub use decoder::{Decoder, DecoderBlock};
pub use encoder::{Encoder, EncoderBlock};
pub use mid::{MidBlock, PixelAttention};
pub use model::{LatentDistribution, Vae};
pub use statistics::LatentStatistics;
pub use tiling::Tiling;
