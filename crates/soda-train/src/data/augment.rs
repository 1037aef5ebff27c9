//! Data augmentation: crops and mirror images of an image, orders of a caption's tags.
//!
//! The variants of an example are a function of the seed and its index. The variant that a step uses is a
//! function of the seed and the step.

use image::{RgbImage, imageops};
use rand::Rng;
use rand::seq::SliceRandom;
use soda_models::image::{Crop, resize_crop};
use soda_models::noise::generator;

use crate::config::AugmentConfig;
use crate::data::buckets::Size;
use crate::data::rng;

/// A crop of an image, possibly mirrored, resized to the training size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ImageVariant {
    /// Width and height of the whole image.
    original_size: (u32, u32),
    pub(crate) crop: Crop,
    pub(crate) flipped: bool,
    pub(crate) size: Size,
}

/// The distinct variants of the image with this index and these dimensions (width, height), at the training
/// size `size`.
pub(crate) fn image_variants(
    dimensions: (u32, u32),
    size: Size,
    augment: &AugmentConfig,
    seed: u64,
    index: u64,
) -> Vec<ImageVariant> {
    let mut rng = generator(seed, rng::CROP + index);
    let mut variants = Vec::new();
    for _ in 0..augment.crops {
        let at = if augment.crops == 1 { [0.5; 2] } else { [rng.random(), rng.random()] };
        let crop = Crop::largest(dimensions, size[0], size[1], at);
        for flipped in [false, true].into_iter().take(1 + usize::from(augment.flip)) {
            let variant = ImageVariant { original_size: dimensions, crop, flipped, size };
            if !variants.contains(&variant) {
                variants.push(variant);
            }
        }
    }
    variants
}

impl ImageVariant {
    /// Crops, resizes and mirrors `image`, which has the variant's original size.
    pub(crate) fn apply(&self, image: &RgbImage) -> RgbImage {
        let cropped = resize_crop(image, self.crop, self.size[0], self.size[1]);
        if self.flipped { imageops::flip_horizontal(&cropped) } else { cropped }
    }

    /// The time ids of SDXL (arXiv 2307.01952, 2.2): height and width of the original image, top and left of
    /// the crop in the resized image, height and width of the result. Those of a mirrored variant refer to
    /// the mirrored image.
    pub(crate) fn time_ids(&self) -> [f32; 6] {
        let (width, height) = self.original_size;
        let Crop { x, y, width: columns, height: rows } = self.crop;
        let x = if self.flipped { width - columns - x } else { x };
        let resized = |pixels: u32, side: u32, part: u32| {
            (f64::from(pixels) * f64::from(side) / f64::from(part.max(1))).round() as f32
        };
        let [w, h] = self.size;
        let (top, left) = (resized(y, h, rows), resized(x, w, columns));
        [height as f32, width as f32, top, left, h as f32, w as f32]
    }

    /// The variant as part of a cache key. The text must not change, or the entries of existing caches are
    /// not found.
    pub(crate) fn cache_key(&self) -> String {
        let Self { original_size, crop: Crop { x, y, width, height }, flipped, size } = self;
        format!(
            "View {{ dimensions: {original_size:?}, part: Crop {{ x: {x}, y: {y}, width: {width}, height: {height} }}, \
             mirrored: {flipped}, size: {size:?} }}"
        )
    }
}

/// The distinct orders of the comma-separated tags of the caption with this index. The first
/// [`keep_tags`](AugmentConfig::keep_tags) tags stay in front.
pub(crate) fn caption_variants(
    caption: &str,
    augment: &AugmentConfig,
    seed: u64,
    index: u64,
) -> Vec<String> {
    let tags: Vec<&str> = caption.split(',').map(str::trim).filter(|tag| !tag.is_empty()).collect();
    if augment.tag_orders == 1 || tags.len() <= augment.keep_tags + 1 {
        return vec![caption.to_owned()];
    }
    let mut rng = generator(seed, rng::TAGS + index);
    let mut variants = Vec::new();
    for _ in 0..augment.tag_orders {
        let mut tags = tags.clone();
        tags[augment.keep_tags..].shuffle(&mut rng);
        let variant = tags.join(", ");
        if !variants.contains(&variant) {
            variants.push(variant);
        }
    }
    variants
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn cache_keys_are_those_of_existing_caches() {
        let crop = Crop { x: 1, y: 2, width: 30, height: 40 };
        let variant = ImageVariant { original_size: (50, 60), crop, flipped: true, size: [64, 72] };
        let key = "View { dimensions: (50, 60), part: Crop { x: 1, y: 2, width: 30, height: 40 }, \
                   mirrored: true, size: [64, 72] }";
        assert_eq!(variant.cache_key(), key);
    }

    #[test]
    fn a_variant_is_inside_the_image_and_its_time_ids_say_where() {
        let image = RgbImage::from_fn(300, 100, |x, y| Rgb([(x / 2) as u8, y as u8, 0]));
        let augment = AugmentConfig { crops: 4, flip: true, ..AugmentConfig::default() };
        let all = image_variants(image.dimensions(), [50, 50], &augment, 3, 0);
        assert_eq!(all.len(), 8);
        let mut lefts = Vec::new();
        for pair in all.chunks(2) {
            let [plain, mirrored] = [pair[0], pair[1]].map(|variant| variant.apply(&image));
            assert_eq!(imageops::flip_horizontal(&plain), mirrored);
            let [ids, mirrored] = [pair[0].time_ids(), pair[1].time_ids()];
            assert_eq!((ids[0], ids[1], ids[2], ids[4], ids[5]), (100.0, 300.0, 0.0, 50.0, 50.0));
            // The margins left and right of the crop add up to 200 pixels, or 100 at half the size.
            assert!((ids[3] + mirrored[3] - 100.0).abs() <= 1.0, "{ids:?} {mirrored:?}");
            // The colour encodes the column of the image, here the first of the crop.
            let x = f32::from(plain.get_pixel(0, 25)[0]);
            assert!((x - ids[3]).abs() < 2.0, "{x} for {ids:?}");
            lefts.push(ids[3]);
        }
        assert!(lefts.windows(2).any(|pair| pair[0] != pair[1]));
        assert_eq!(all, image_variants(image.dimensions(), [50, 50], &augment, 3, 0));
        assert_ne!(all, image_variants(image.dimensions(), [50, 50], &augment, 3, 1));
        // A square image has one crop.
        assert_eq!(image_variants((80, 80), [50, 50], &augment, 3, 0).len(), 2);
        assert_eq!(image_variants((300, 100), [50, 50], &AugmentConfig::default(), 3, 0).len(), 1);
    }

    /// The crop follows from SDXL's time ids alone, at any aspect ratio, to within the pixel that integers
    /// leave.
    #[test]
    fn time_ids_determine_the_crop() {
        let augment = AugmentConfig { crops: 3, flip: true, ..AugmentConfig::default() };
        for (dimensions, size) in [
            ((300, 100), [64, 48]),
            ((97, 331), [40, 88]),
            ((48, 40), [96, 80]),
            ((50, 80), [64, 64]),
        ] {
            for variant in image_variants(dimensions, size, &augment, 3, 0) {
                let ids = variant.time_ids().map(f64::from);
                let (whole, at, target) = ([ids[1], ids[0]], [ids[3], ids[2]], [ids[5], ids[4]]);
                // The resized image is the smallest that covers the target.
                let scale = (target[0] / whole[0]).max(target[1] / whole[1]);
                let Crop { x, y, width, height } = variant.crop;
                let x = if variant.flipped { dimensions.0 - width - x } else { x };
                for (axis, (start, length)) in [(x, width), (y, height)].into_iter().enumerate() {
                    let [found, part] = [at[axis], target[axis]].map(|pixels| pixels / scale);
                    // Half a pixel of the result, and the effect of the crop's integer sides on the scale.
                    let error =
                        (0.5 / scale).max(0.5) + f64::from(start) / f64::from(width.min(height));
                    assert!((found - f64::from(start)).abs() <= error, "{ids:?} for {variant:?}");
                    assert!((part - f64::from(length)).abs() <= 1.0, "{ids:?} for {variant:?}");
                }
            }
        }
    }

    #[test]
    fn tags_are_permuted_and_none_is_lost() {
        let augment = AugmentConfig { tag_orders: 6, keep_tags: 1, ..AugmentConfig::default() };
        let all = caption_variants("sks mug, red,  big, old", &augment, 1, 0);
        assert!(all.len() > 2 && all.len() <= 6, "{all:?}");
        for caption in &all {
            assert!(caption.starts_with("sks mug, "), "{caption}");
            let mut tags: Vec<_> = caption.split(", ").collect();
            tags.sort_unstable();
            assert_eq!(tags, ["big", "old", "red", "sks mug"]);
        }
        assert_eq!(all, caption_variants("sks mug, red,  big, old", &augment, 1, 0));
        // With nothing to shuffle the caption stays as it was written.
        assert_eq!(caption_variants("a mug ,red", &augment, 1, 0), ["a mug ,red"]);
        assert_eq!(caption_variants("a, b, c", &AugmentConfig::default(), 1, 0), ["a, b, c"]);
    }
}
