//! Reading image files.

use std::io::{Cursor, ErrorKind};
use std::path::Path;

use image::{
    DynamicImage, GrayImage, ImageDecoder, ImageError as DecodeError, ImageFormat, ImageReader,
    Luma, Rgb, RgbImage, RgbaImage,
};

use super::jpeg;
use crate::error::{ImageError, ModelError};
use crate::input_file::{self, SizeLimit};

/// The largest number of pixels that is read or drawn. It is more than any camera takes, and at most 2 GB
/// while it is decoded.
///
/// The limit is checked before the pixels are decoded, since a file of a few bytes can claim to be larger.
pub const MAX_PIXELS: u64 = 150_000_000;

/// The number of pixels that a file of any length may have. A single colour takes no space.
const PLAUSIBLE_PIXELS: u64 = 1 << 24;

/// The most pixels of a byte in larger images. Deflate, which PNG and TIFF use, packs 8,256 of one bit.
const PIXELS_PER_BYTE: u64 = 1 << 14;

/// Reads an image file of any format that the `image` crate was built with, as upright, opaque 8-bit RGB.
///
/// - The rotation in the EXIF data is applied.
/// - Transparent pixels are blended with white.
/// - Grey, palette, 16-bit and CMYK images are converted, without a colour profile.
/// - Of an animation, the first frame is read.
///
/// # Errors
///
/// [`ModelError`], which names the file, if it is missing, empty, damaged, not an image or larger than
/// [`MAX_PIXELS`].
pub fn read_rgb(path: &Path) -> Result<RgbImage, ModelError> {
    Ok(read_rgb_and_alpha(path)?.0)
}

/// Reads an image file as [`read_rgb`], and its alpha channel if it has one.
///
/// # Errors
///
/// The errors of [`read_rgb`].
pub fn read_rgb_and_alpha(path: &Path) -> Result<(RgbImage, Option<GrayImage>), ModelError> {
    let image = read(path)?;
    if !image.color().has_alpha() {
        return Ok((image.into_rgb8(), None));
    }
    let rgba = image.into_rgba8();
    let (width, height) = rgba.dimensions();
    let alpha = GrayImage::from_fn(width, height, |x, y| Luma([rgba.get_pixel(x, y)[3]]));
    Ok((on_white(&rgba), Some(alpha)))
}

/// Reads a mask: the brightness of each pixel, with transparent pixels blended with black.
///
/// # Errors
///
/// The errors of [`read_rgb`].
pub fn read_mask(path: &Path) -> Result<GrayImage, ModelError> {
    let image = read(path)?;
    if !image.color().has_alpha() {
        return Ok(image.into_luma8());
    }
    let mut grey = image.to_luma_alpha8();
    let opaque = |grey: u8, alpha: u8| ((u32::from(grey) * u32::from(alpha) + 127) / 255) as u8;
    grey.pixels_mut().for_each(|pixel| pixel.0 = [opaque(pixel[0], pixel[1]), 255]);
    Ok(DynamicImage::from(grey).into_luma8())
}

/// Decodes an image file and turns the image upright.
fn read(path: &Path) -> Result<DynamicImage, ModelError> {
    let io = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => ImageError::Missing { path: path.to_path_buf() }.into(),
        _ => ModelError::Io { path: path.to_path_buf(), source },
    };
    let bytes = input_file::read(path, SizeLimit::IMAGE).map_err(io)?;
    if bytes.is_empty() {
        return Err(ImageError::Empty { path: path.to_path_buf() }.into());
    }
    // The format is guessed from the content: photos travel under wrong extensions.
    let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format().map_err(io)?;
    let broken = |source: DecodeError| ImageError::Decode { path: path.to_path_buf(), source };
    let is_jpeg = reader.format() == Some(ImageFormat::Jpeg);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    // The size is known from the first bytes, before memory for the pixels is allocated.
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MAX_PIXELS {
        return Err(ImageError::TooLarge {
            path: path.to_path_buf(),
            width,
            height,
            max_pixels: MAX_PIXELS,
        }
        .into());
    }
    if pixels > PLAUSIBLE_PIXELS && pixels > PIXELS_PER_BYTE * bytes.len() as u64 {
        return Err(ImageError::Truncated { path: path.to_path_buf() }.into());
    }
    let orientation = decoder.orientation().map_err(broken)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(broken)?;
    if is_jpeg && !jpeg::has_end(&bytes) {
        return Err(ImageError::Truncated { path: path.to_path_buf() }.into());
    }
    image.apply_orientation(orientation);
    Ok(image)
}

/// Blends an image with white, as a browser shows it.
fn on_white(rgba: &RgbaImage) -> RgbImage {
    let mut opaque = RgbImage::new(rgba.width(), rgba.height());
    for (to, from) in opaque.pixels_mut().zip(rgba.pixels()) {
        let alpha = u32::from(from[3]);
        let blend = |c: u8| ((u32::from(c) * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        *to = Rgb([blend(from[0]), blend(from[1]), blend(from[2])]);
    }
    opaque
}
