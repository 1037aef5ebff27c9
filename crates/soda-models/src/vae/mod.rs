//! The autoencoder between pictures and latents, one concept a file.

pub mod config;
pub mod decoder;
pub mod encoder;
pub mod mid;
pub mod model;
pub mod tiling;

pub use config::VaeConfig;
pub use model::{LatentDistribution, Vae};
pub use tiling::Tiling;
