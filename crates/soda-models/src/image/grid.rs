//! A grid of images as one image.

use image::{Rgb, RgbImage, imageops};

/// Pixels between the images of a grid.
const MARGIN: u32 = 4;

/// The least width of an image in a grid. Narrower images are magnified.
const LEGIBLE: u32 = 128;

/// Arranges rows of images on a white canvas. Small images are magnified without smoothing.
///
/// Columns are as wide as the widest image, and each row is as high as its highest image. Rows may have
/// different lengths.
pub fn grid(rows: &[Vec<RgbImage>]) -> RgbImage {
    let images = || rows.iter().flatten();
    let widest = images().map(RgbImage::width).max().unwrap_or(1);
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
        for (column, image) in row.iter().enumerate() {
            let (w, h) = image.dimensions();
            let (w, h) = (w * times, h * times);
            let magnified = imageops::resize(image, w, h, imageops::FilterType::Nearest);
            let x = MARGIN + column as u32 * step;
            imageops::replace(&mut canvas, &magnified, x.into(), y.into());
        }
        y += height + MARGIN;
    }
    canvas
}
