//! The denoising UNet, one concept a file.

pub mod attention;
pub mod blocks;
pub mod condition;
pub mod config;
pub mod embedding;
pub mod model;
pub mod projection;
pub mod resnet;
pub mod stages;
pub mod transformer;

pub use condition::{AddedCondition, Condition, Timestep};
pub use config::UnetConfig;
pub use model::Unet;
pub use stages::{Stage, StageInput};
