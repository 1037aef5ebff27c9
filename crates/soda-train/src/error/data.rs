//! Errors of the data folder.

use std::path::PathBuf;

/// The most samples of an epoch, repeats counted.
pub(crate) const MAX_SAMPLES: usize = 10_000_000;

/// A data folder whose images, captions or masks cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The data folder is missing or is not a folder.
    #[error("there is no data folder {path}; give a folder of images with `--data`", path = .0.display())]
    NoFolder(PathBuf),
    /// The data folder has no images.
    #[error(
        "{path} holds no picture (png, jpg, jpeg, webp, bmp, tif, tiff); a subject needs at least one",
        path = .0.display()
    )]
    Empty(PathBuf),
    /// The data folder has images in folders only that are not read.
    #[error(
        "{path} holds no picture that is read: {reason}",
        path = path.display()
    )]
    OnlySkipped {
        /// The data folder.
        path: PathBuf,
        /// The first folder with images and why it is not read.
        reason: String,
    },
    /// A named pipe, a socket or a device in the place of a file.
    #[error("{path} is no regular file; remove it from the data folder", path = .0.display())]
    NotAFile(PathBuf),
    /// A text file that is neither UTF-8 nor UTF-16 with a byte order mark.
    #[error("{path} is {encoding}: save it as UTF-8", path = path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
        /// The encoding that the file seems to have.
        encoding: &'static str,
    },
    /// A text file that is too large to be one.
    #[error("{path} is larger than 1 GiB, which no text file needs; remove it", path = .0.display())]
    TooLarge(PathBuf),
    /// Repeats of an image or of a folder that make an epoch absurdly long.
    #[error(
        "{path} is to be repeated {repeats} times, and an epoch may have {max} samples; the number before `_` in \
         the name of a folder and `repeats` in metadata.jsonl are repeats: rename the folder or lower them",
        path = path.display(),
        max = MAX_SAMPLES
    )]
    Repeats {
        /// The image with the most repeats.
        path: PathBuf,
        /// The number of its repeats.
        repeats: usize,
    },
    /// An image without a caption.
    #[error(
        "{path} has no caption: put a line for it in metadata.jsonl, a .txt file beside it, or give `--prompt`",
        path = .0.display()
    )]
    NoCaption(PathBuf),
    /// A JSON file, or a line of one, that does not parse or contradicts the folder.
    #[error("{path}, line {line}: {reason}", path = path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The line number, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A mask that does not fit its image.
    #[error("mask {path} {reason}", path = path.display())]
    Mask {
        /// The file of the mask, or of the image if its transparency is the mask.
        path: PathBuf,
        /// What is wrong with the mask, and the remedy.
        reason: String,
    },
    /// Masks were asked for and no image has one.
    #[error(
        "no picture in {path} has a mask: {remedy}, or leave `masks` out",
        path = path.display()
    )]
    NoMasks {
        /// The data folder.
        path: PathBuf,
        /// How to make a mask.
        remedy: &'static str,
    },
    /// An image that fits no bucket unless it is upscaled.
    #[error(
        "{path} has {width} x {height} pixels, less than one step of {step}: remove it, or allow \
         `buckets.upscale`",
        path = path.display()
    )]
    SmallImage {
        /// The image file.
        path: PathBuf,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The step of the buckets, in pixels.
        step: u32,
    },
}
