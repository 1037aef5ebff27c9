//! The denoising UNet of Stable Diffusion.

mod attention;
mod blocks;
mod config;
mod embedding;
mod forward;
mod model;
mod projection;
pub(crate) mod resnet;
mod segments;
mod transformer;

pub use attention::{Attention, AttentionConfig};
pub use blocks::{DownBlock, MidBlock, UpBlock};
pub use config::{AdditionEmbedType, DownBlockType, PerBlock, UnetConfig, UpBlockType};
pub use embedding::{TimestepEmbedding, sinusoidal_embedding};
pub use model::Unet;
pub use projection::Projection;
pub use resnet::{Downsample, ResnetBlock, ResnetConfig, Upsample};
pub use segments::{Segment, UnetShared};
pub use transformer::{
    FeedForward, GeGlu, SpatialTransformer, TransformerBlock, TransformerConfig,
};
