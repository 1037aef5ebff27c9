//! Images: files, tensors, crops, resampling and grids.
//!
//! Inside the crate an image is an 8-bit RGB [`image::RgbImage`], upright and opaque, whatever its file was.

mod crop;
mod grid;
mod jpeg;
mod parameters;
mod png;
mod processor;
mod read;
mod resample;
mod tensor;

pub use crop::{Crop, resize_center_crop, resize_crop};
pub use grid::grid;
pub use parameters::GenerationParameters;
pub use png::png_with_parameters;
pub use processor::{ImageProcessor, ImageSize};
pub use read::{MAX_PIXELS, read_mask, read_rgb, read_rgb_and_alpha};
pub use resample::{Filter, resize};
pub use tensor::{to_images, to_tensor};
