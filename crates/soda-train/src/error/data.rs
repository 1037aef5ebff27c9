//! Errors of the data folder.

use std::path::PathBuf;

/// A data folder whose images, captions or masks cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The data folder is missing or is not a folder.
    #[error("there is no data folder {path}; give a folder of images", path = .0.display())]
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
    /// A text file that is neither UTF-8 nor UTF-16 with a byte order mark.
    #[error("{path} is {encoding}: save it as UTF-8", path = path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
        /// The encoding that the file seems to have.
        encoding: &'static str,
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
    /// The repeats of the images make an epoch too long.
    #[error(
        "the repeats in {folder} make an epoch of more than {most} samples, most of them of {image}: \
         lower `repeats` in metadata.jsonl, or the number in the folder's name",
        folder = folder.display(),
        image = image.display()
    )]
    Repeats {
        /// The data folder.
        folder: PathBuf,
        /// The image with the most repeats.
        image: PathBuf,
        /// The most samples of an epoch.
        most: usize,
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
    /// Class images that rank 0 has drawn and this rank does not see.
    #[error(
        "there are no class images in {folder}, where rank 0 has drawn them; let all machines share the folder of \
         the runs, or give `prior.data`",
        folder = folder.display()
    )]
    NoClassImages {
        /// The folder.
        folder: PathBuf,
    },
}
