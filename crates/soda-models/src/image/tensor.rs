//! Images to tensors and back.

use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;

use crate::error::{ImageError, ModelError};

/// Converts images to a tensor `[b, 3, h, w]` in [0, 1].
///
/// # Panics
///
/// If there are no images, or if their sizes differ.
#[track_caller]
pub fn to_tensor(images: &[RgbImage], device: &Device) -> Tensor<4> {
    let scale = |value: u8, _| f32::from(value) / 255.0;
    planes(images, scale, device)
}

/// Converts `pixels` `[b, 3, h, w]` in [0, 1] to images. Values outside of [0, 1] are clipped.
///
/// # Errors
///
/// [`ImageError::NonFinite`] for NaN or infinity, which as bytes would be black or white.
///
/// # Panics
///
/// If there are not three channels.
#[track_caller]
pub fn to_images(pixels: Tensor<4>) -> Result<Vec<RgbImage>, ModelError> {
    let [batch, channels, height, width] = pixels.dims();
    assert_eq!(channels, 3, "an image has three channels: red, green and blue");
    // Images are stored with interleaved channels.
    let data = pixels.swap_dims(1, 2).swap_dims(2, 3).into_data();
    let size = (channels * height * width).max(1);
    if let Some(bad) = data.iter::<f32>().position(|value| !value.is_finite()) {
        return Err(ImageError::NonFinite { what: "pixels", index: bad / size }.into());
    }
    let mut bytes = data.iter::<f32>().map(|value| (value * 255.0).round_ties_even() as u8);
    let image = |_| {
        let mut image = RgbImage::new(width as u32, height as u32);
        image.iter_mut().zip(&mut bytes).for_each(|(to, from)| *to = from);
        image
    };
    Ok((0..batch).map(image).collect())
}

/// Fills a tensor `[b, 3, h, w]` with `value(byte, channel)` of images of one size.
#[track_caller]
pub(super) fn planes(
    images: &[RgbImage],
    value: impl Fn(u8, usize) -> f32,
    device: &Device,
) -> Tensor<4> {
    let size = images.first().map(RgbImage::dimensions).unwrap_or_default();
    assert!(!images.is_empty(), "no images to make a tensor of");
    assert!(
        images.iter().all(|image| image.dimensions() == size),
        "images of different sizes do not fit into one tensor"
    );
    let (width, height) = (size.0 as usize, size.1 as usize);
    let mut values = Vec::with_capacity(images.len() * 3 * width * height);
    for image in images {
        for channel in 0..3 {
            values.extend(image.pixels().map(|pixel| value(pixel[channel], channel)));
        }
    }
    Tensor::from_data(TensorData::new(values, [images.len(), 3, height, width]), device)
}
