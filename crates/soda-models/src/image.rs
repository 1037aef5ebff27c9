//! Pictures: reading files, and the way to tensors and back.
//!
//! Inside the crate a picture is an 8-bit [`RgbImage`], upright and opaque, whatever the file was.
//! [`resample`] changes its size, [`preprocess`] makes it what a judge was trained on, and [`grid`]
//! puts many into one.

mod jpeg;
pub mod preprocess;
pub mod resample;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use image::{
    DynamicImage, GrayImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Luma, Rgb,
    RgbImage, RgbaImage, imageops,
};

use crate::error::ModelError;
use crate::image::resample::{Filter, resize};

/// Pixels between the pictures of a grid.
const MARGIN: u32 = 4;

/// Pictures of a grid are magnified until they are this wide: 64 pixels are a stamp on a screen.
const LEGIBLE: u32 = 128;

/// The largest picture that is read: more than any camera takes, and at most 2 GB while it is decoded. A
/// file of a few bytes can claim to be larger.
pub const MAX_PIXELS: u64 = 150_000_000;

/// Reads a picture of any format that the `image` crate was built with.
///
/// A rotation in the EXIF data is carried out, transparency is laid on white, and grey, palette and
/// 16-bit pictures become 8-bit RGB, and so does CMYK, without a colour profile. Of an animation it is the
/// first frame.
///
/// # Errors
///
/// A file that is missing, empty, damaged, no picture or of more than [`MAX_PIXELS`]; each names the file.
pub fn read_rgb(path: &Path) -> Result<RgbImage, ModelError> {
    Ok(read_rgb_and_alpha(path)?.0)
}

/// [`read_rgb`], and how opaque each pixel is, where the file says so.
///
/// # Errors
///
/// Those of [`read_rgb`].
pub fn read_rgb_and_alpha(path: &Path) -> Result<(RgbImage, Option<GrayImage>), ModelError> {
    let picture = read(path)?;
    if !picture.color().has_alpha() {
        return Ok((picture.into_rgb8(), None));
    }
    let rgba = picture.into_rgba8();
    let (width, height) = rgba.dimensions();
    let alpha = GrayImage::from_fn(width, height, |x, y| Luma([rgba.get_pixel(x, y)[3]]));
    Ok((on_white(&rgba), Some(alpha)))
}

/// Reads a mask: how bright each pixel is, with what is transparent laid on black.
///
/// # Errors
///
/// Those of [`read_rgb`].
pub fn read_mask(path: &Path) -> Result<GrayImage, ModelError> {
    let picture = read(path)?;
    if !picture.color().has_alpha() {
        return Ok(picture.into_luma8());
    }
    let mut grey = picture.to_luma_alpha8();
    let opaque = |grey: u8, alpha: u8| ((u32::from(grey) * u32::from(alpha) + 127) / 255) as u8;
    grey.pixels_mut().for_each(|pixel| pixel.0 = [opaque(pixel[0], pixel[1]), 255]);
    Ok(DynamicImage::from(grey).into_luma8())
}

/// A picture as it was stored, upright.
fn read(path: &Path) -> Result<DynamicImage, ModelError> {
    let io = |e| ModelError::io(path, "an image", e);
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if metadata.is_file() && metadata.len() == 0 {
        return Err(ModelError::EmptyImage { path: path.to_path_buf() });
    }
    // The content decides, not the name: photos travel under wrong extensions.
    let reader = ImageReader::new(BufReader::new(file)).with_guessed_format().map_err(io)?;
    let broken = |source: ImageError| ModelError::Image { path: path.to_path_buf(), source };
    let is_jpeg = reader.format() == Some(ImageFormat::Jpeg);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    // Known from the file's first bytes, before there is memory for the pixels.
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(ModelError::HugeImage { path: path.to_path_buf(), width, height });
    }
    let orientation = decoder.orientation().map_err(broken)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(broken)?;
    if is_jpeg && !jpeg::has_end(&std::fs::read(path).map_err(io)?) {
        return Err(ModelError::CutImage { path: path.to_path_buf() });
    }
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// A picture as the bytes of a PNG file, which says how it was made: `text` stands under
/// `parameters`, where the programs of the field look for it.
///
/// # Errors
///
/// What the encoder says; a picture without pixels.
pub fn png_with_parameters(picture: &RgbImage, text: &str) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // Latin-1 where it is enough, since some programs read nothing else.
    if text.is_ascii() {
        encoder.add_text_chunk("parameters".to_string(), text.to_string())?;
    } else {
        encoder.add_itxt_chunk("parameters".to_string(), text.to_string())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

/// A part of a picture, in its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crop {
    /// Columns to its left.
    pub x: u32,
    /// Rows above it.
    pub y: u32,
    /// Its columns.
    pub width: u32,
    /// Its rows.
    pub height: u32,
}

impl Crop {
    /// The largest part of a picture of `dimensions` in the aspect ratio of `width` and `height`. `at` says
    /// where along each axis, from 0, the left or the top, to 1; `[0.5; 2]` is the centre.
    pub fn largest(dimensions: (u32, u32), width: u32, height: u32, at: [f64; 2]) -> Self {
        let (w, h) = dimensions;
        // u64: 32 bits overflow for a panorama at a large target.
        let fit =
            |a: u32, b: u32, c: u32| (u64::from(a) * u64::from(b) / u64::from(c).max(1)) as u32;
        let (crop_w, crop_h) = match fit(h, width, height) {
            by_height if by_height <= w => (by_height.max(1), h),
            _ => (w, fit(w, height, width).max(1)),
        };
        let place = |room: u32, at: f64| (f64::from(room) * at.clamp(0.0, 1.0)) as u32;
        Self {
            x: place(w - crop_w, at[0]),
            y: place(h - crop_h, at[1]),
            width: crop_w,
            height: crop_h,
        }
    }
}

/// A part of `picture` at a size, by Lanczos.
pub fn resize_crop(picture: &RgbImage, part: Crop, width: u32, height: u32) -> RgbImage {
    let cropped = imageops::crop_imm(picture, part.x, part.y, part.width, part.height).to_image();
    resize(&cropped, width, height, Filter::Lanczos)
}

/// The centre of `picture` in the aspect ratio of `width` and `height`, at that size.
///
/// What diffusers' trainers do to a training picture: all of it that fits, by Lanczos.
pub fn resize_center_crop(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    resize_crop(
        picture,
        Crop::largest(picture.dimensions(), width, height, [0.5; 2]),
        width,
        height,
    )
}

/// Pictures as `[b, 3, h, w]` in [0, 1].
///
/// # Panics
///
/// If there are none, or they are of different sizes.
#[track_caller]
pub fn to_tensor(pictures: &[RgbImage], device: &Device) -> Tensor<4> {
    let scale = |value: u8, _| f32::from(value) / 255.0;
    planes(pictures, scale, device)
}

/// `pixels` `[b, 3, h, w]` in [0, 1] as pictures; values outside are clipped.
///
/// # Errors
///
/// [`ModelError::NonFiniteImage`] for NaN and infinity, which as bytes would be black or white.
///
/// # Panics
///
/// If there are not three channels.
#[track_caller]
pub fn to_images(pixels: Tensor<4>) -> Result<Vec<RgbImage>, ModelError> {
    let [batch, channels, height, width] = pixels.dims();
    assert_eq!(channels, 3, "a picture has three channels: red, green and blue");
    // Interleaved, as pictures are stored.
    let data = pixels.swap_dims(1, 2).swap_dims(2, 3).into_data();
    let size = (channels * height * width).max(1);
    if let Some(bad) = data.iter::<f32>().position(|value| !value.is_finite()) {
        return Err(ModelError::NonFiniteImage { what: "pixels", index: bad / size });
    }
    let mut bytes = data.iter::<f32>().map(|value| (value * 255.0).round_ties_even() as u8);
    let picture = |_| {
        let mut picture = RgbImage::new(width as u32, height as u32);
        picture.iter_mut().zip(&mut bytes).for_each(|(to, from)| *to = from);
        picture
    };
    Ok((0..batch).map(picture).collect())
}

/// Rows of pictures on white, each small picture magnified without smoothing.
///
/// Columns are as wide as the widest picture, rows as high as the highest of theirs; rows may be
/// of different lengths.
pub fn grid(rows: &[Vec<RgbImage>]) -> RgbImage {
    let pictures = || rows.iter().flatten();
    let widest = pictures().map(RgbImage::width).max().unwrap_or(1);
    let times = LEGIBLE.div_ceil(widest.max(1));
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0) as u32;
    let heights: Vec<u32> = rows
        .iter()
        .map(|row| row.iter().map(RgbImage::height).max().unwrap_or(0) * times)
        .collect();

    let step = widest * times + MARGIN;
    let height = heights.iter().map(|height| height + MARGIN).sum::<u32>() + MARGIN;
    let mut canvas = RgbImage::from_pixel(columns * step + MARGIN, height, Rgb([255; 3]));
    let mut y = MARGIN;
    for (row, height) in rows.iter().zip(heights) {
        for (column, picture) in row.iter().enumerate() {
            let (w, h) = picture.dimensions();
            let (w, h) = (w * times, h * times);
            let magnified = imageops::resize(picture, w, h, imageops::FilterType::Nearest);
            let x = MARGIN + column as u32 * step;
            imageops::replace(&mut canvas, &magnified, x.into(), y.into());
        }
        y += height + MARGIN;
    }
    canvas
}

/// Pictures of one size as `[b, 3, h, w]` of `value(byte, channel)`.
#[track_caller]
fn planes(pictures: &[RgbImage], value: impl Fn(u8, usize) -> f32, device: &Device) -> Tensor<4> {
    let size = pictures.first().map(RgbImage::dimensions).unwrap_or_default();
    assert!(!pictures.is_empty(), "no pictures to make a tensor of");
    assert!(
        pictures.iter().all(|picture| picture.dimensions() == size),
        "pictures of different sizes do not fit into one tensor"
    );
    let (width, height) = (size.0 as usize, size.1 as usize);
    let mut values = Vec::with_capacity(pictures.len() * 3 * width * height);
    for picture in pictures {
        for channel in 0..3 {
            values.extend(picture.pixels().map(|pixel| value(pixel[channel], channel)));
        }
    }
    Tensor::from_data(TensorData::new(values, [pictures.len(), 3, height, width]), device)
}

/// Lays a picture with transparency on white, as a browser page shows it.
fn on_white(rgba: &RgbaImage) -> RgbImage {
    let mut opaque = RgbImage::new(rgba.width(), rgba.height());
    for (to, from) in opaque.pixels_mut().zip(rgba.pixels()) {
        let alpha = u32::from(from[3]);
        let blend = |c: u8| ((u32::from(c) * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        *to = Rgb([blend(from[0]), blend(from[1]), blend(from[2])]);
    }
    opaque
}
