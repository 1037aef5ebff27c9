//! Errors of images: files that are not read, and results that are not finite.

use std::path::PathBuf;

/// Why an image file was refused, or why no image can be made of a tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// There is no such file, or a link leads nowhere.
    #[error("{} does not exist, or is a link that leads nowhere: correct the path or the link of the image", .path.display())]
    Missing {
        /// The path that was looked for.
        path: PathBuf,
    },

    /// The file is not an image, or not one in a known format.
    #[error("{} cannot be read as an image: {source}; copy it again or remove it", .path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The decoder's reason.
        source: image::ImageError,
    },

    /// The file has no bytes.
    #[error("{} is an empty file, not an image: copy it again or remove it", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },

    /// A JPEG file lacks its end. Decoders would fill the missing part with grey.
    #[error("{} ends in the middle of the image: copy it again or remove it", .path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
    },

    /// The image would take gigabytes of memory to decode.
    #[error(
        "{} has {width} x {height} pixels, more than {} million: make it smaller or remove it",
        .path.display(), .max_pixels / 1_000_000
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The largest number of pixels that is read.
        max_pixels: u64,
    },

    /// Latents or pixels are NaN or infinite, so that no image can be made of them.
    #[error(
        "the {what} of image {index} are not finite numbers: the precision overflowed or the weights are damaged; use f32 or bf16, or another scheduler"
    )]
    NonFinite {
        /// What is not finite: "latents" or "pixels".
        what: &'static str,
        /// The image's position in the batch, counted from 0.
        index: usize,
    },
}
