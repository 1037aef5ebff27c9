//! The autoencoder between images and latents.

mod config;
mod decoder;
mod encoder;
mod mid;
mod model;
mod tiling;

pub use config::{DecoderBlockType, EncoderBlockType, VaeConfig};
pub use decoder::{Decoder, DecoderBlock};
pub use encoder::{Encoder, EncoderBlock};
pub use mid::{MidBlock, PixelAttention};
pub use model::{LatentDistribution, Vae};
pub use tiling::Tiling;
