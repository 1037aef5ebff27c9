//! Crops in a given aspect ratio.

use image::{RgbImage, imageops};

use super::resample::{Filter, resize};

/// A rectangle of an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crop {
    /// Columns to the left of the rectangle.
    pub x: u32,
    /// Rows above the rectangle.
    pub y: u32,
    /// Width of the rectangle.
    pub width: u32,
    /// Height of the rectangle.
    pub height: u32,
}

impl Crop {
    /// The largest crop in the aspect ratio `width : height` of an image of size `dimensions`.
    ///
    /// `at` is the position along each axis, from 0 (left or top) to 1 (right or bottom). `[0.5; 2]` is the
    /// centre.
    pub fn largest(dimensions: (u32, u32), width: u32, height: u32, at: [f64; 2]) -> Self {
        let (w, h) = dimensions;
        // The products need u64: 32 bits overflow for a panorama at a large target size.
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

/// Crops `image` and resizes the crop to `width` x `height` by Lanczos.
pub fn resize_crop(image: &RgbImage, part: Crop, width: u32, height: u32) -> RgbImage {
    let cropped = imageops::crop_imm(image, part.x, part.y, part.width, part.height).to_image();
    resize(&cropped, width, height, Filter::Lanczos)
}

/// Crops the centre of `image` in the aspect ratio `width : height` and resizes the crop to that size by
/// Lanczos.
///
/// diffusers' trainers do the same to a training image.
///
/// ```
/// use image::RgbImage;
/// use soda_models::image::resize_center_crop;
///
/// let photo = RgbImage::new(640, 480);
/// assert_eq!(resize_center_crop(&photo, 64, 64).dimensions(), (64, 64));
/// ```
pub fn resize_center_crop(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    resize_crop(image, Crop::largest(image.dimensions(), width, height, [0.5; 2]), width, height)
}
