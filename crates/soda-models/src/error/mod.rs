//! Errors of reading, checking, using and writing a model.
//!
//! Every message is one sentence that names the file or the setting and says what to do about it.

mod config;
mod image;
mod model;
mod weights;

pub use config::ConfigError;
pub use image::ImageError;
pub use model::ModelError;
pub use weights::WeightsError;
