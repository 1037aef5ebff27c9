//! The denoising UNet, one concept a file.

pub mod attention;
pub mod blocks;
pub mod config;
pub mod embedding;
pub mod model;
pub mod resnet;
pub mod transformer;

pub use config::UnetConfig;
pub use model::Unet;
