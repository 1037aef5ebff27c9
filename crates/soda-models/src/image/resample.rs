//! Resizing exactly as Pillow does it.
//!
//! ```text
//! out(x) = sum_i k((i + 1/2 - c) / s) in(i) / sum_i k(...)     c = (x + 1/2) r,  s = max(r, 1)
//! ```
//!
//! Here `r = in / out`. When an image shrinks, the kernel grows with `r`, so that every input pixel counts
//! (antialiasing). CLIP and DINO were trained on images resized in this way, and their scores change
//! otherwise.
//!
//! Mirrors `libImaging/Resample.c`: one axis after the other, in 22-bit fixed point, with the intermediate
//! image rounded to 8 bits. The results are equal to the byte.

use image::RgbImage;

/// Fractional bits. 32 bits leave 22 beside the 8 of a pixel and 2 of headroom.
const PRECISION: u32 = 22;

/// The parameter `a` of Keys' cubic: the slope at distance 1.
const CUBIC: f64 = -0.5;

/// The kernel of a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The triangle kernel.
    Bilinear,
    /// Keys' cubic kernel.
    Bicubic,
    /// The sinc kernel under a sinc window of three lobes.
    Lanczos,
}

impl Filter {
    /// The distance beyond which the kernel is zero.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The kernel's value at distance `x`.
    fn at(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            _ if x >= self.support() => 0.0,
            Self::Bilinear => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((CUBIC + 2.0) * x - (CUBIC + 3.0)) * x * x + 1.0,
            Self::Bicubic => (((x - 5.0) * x + 8.0) * x - 4.0) * CUBIC,
            Self::Lanczos => sinc(x) * sinc(x / 3.0),
        }
    }
}

/// Resizes `image` to `width` x `height` pixels.
///
/// # Panics
///
/// If either image has no pixels.
#[track_caller]
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let (old_width, old_height) = image.dimensions();
    assert!(width > 0 && height > 0, "an image of {width}x{height} pixels has none");
    assert!(old_width > 0 && old_height > 0, "there is nothing to resize");
    let rows = |image: &RgbImage| match width == old_width {
        true => image.clone(),
        false => resize_rows(image, &Taps::all(old_width, width, filter)),
    };
    let columns = |image: &RgbImage| match height == old_height {
        true => image.clone(),
        false => resize_columns(image, &Taps::all(old_height, height, filter)),
    };
    // The order of the axes is Pillow's since version 13. It shows in the last bit of a byte.
    let (fewer_rows, fewer_columns) =
        (i64::from(old_height) - i64::from(height), i64::from(old_width) - i64::from(width));
    match fewer_rows > 0 && fewer_rows > 2 * fewer_columns {
        true => rows(&columns(image)),
        false => columns(&rows(image)),
    }
}

/// The input weights of one output pixel.
struct Taps {
    /// The index of the first input pixel with a weight.
    first: usize,
    /// The weights from `first` on, in fixed point.
    weights: Vec<i32>,
}

impl Taps {
    fn all(input: u32, output: u32, filter: Filter) -> Vec<Self> {
        let ratio = f64::from(input) / f64::from(output);
        let scale = ratio.max(1.0);
        let support = filter.support() * scale;
        let one = |x| {
            let center = (f64::from(x) + 0.5) * ratio;
            // Truncated towards zero and clipped, as a C cast does it.
            let first = (center - support + 0.5) as u32;
            let last = ((center + support + 0.5) as u32).min(input);
            // Multiplied by the reciprocal instead of divided, so that the last bit is Pillow's.
            let step = 1.0 / scale;
            let weight = |i: u32| filter.at((f64::from(i) - center + 0.5) * step);
            let weights: Vec<f64> = (first..last).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            Self {
                first: first as usize,
                weights: weights.iter().map(|w| fixed(w / sum)).collect(),
            }
        };
        (0..output).map(one).collect()
    }

    /// The weighted sum of `values`, which are the input from `first` on.
    fn apply(&self, values: impl Iterator<Item = u8>) -> u8 {
        let half = 1 << (PRECISION - 1);
        let sum = values.zip(&self.weights).map(|(value, weight)| i32::from(value) * weight);
        ((half + sum.sum::<i32>()) >> PRECISION).clamp(0, 255) as u8
    }
}

fn resize_rows(image: &RgbImage, taps: &[Taps]) -> RgbImage {
    let mut out = RgbImage::new(taps.len() as u32, image.height());
    let (from, to) = (image.width() as usize * 3, taps.len() * 3);
    for (input, output) in image.chunks_exact(from).zip(out.chunks_exact_mut(to)) {
        for (taps, pixel) in taps.iter().zip(output.chunks_exact_mut(3)) {
            for (channel, value) in pixel.iter_mut().enumerate() {
                let start = taps.first * 3 + channel;
                *value = taps.apply(input[start..].iter().step_by(3).copied());
            }
        }
    }
    out
}

fn resize_columns(image: &RgbImage, taps: &[Taps]) -> RgbImage {
    let mut out = RgbImage::new(image.width(), taps.len() as u32);
    let row = image.width() as usize * 3;
    for (taps, output) in taps.iter().zip(out.chunks_exact_mut(row)) {
        for (x, value) in output.iter_mut().enumerate() {
            let start = taps.first * row + x;
            *value = taps.apply(image.as_raw()[start..].iter().step_by(row).copied());
        }
    }
    out
}

/// A weight in fixed point, rounded half away from zero as Pillow does it.
fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION);
    (scaled + 0.5_f64.copysign(scaled)) as i32
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}
