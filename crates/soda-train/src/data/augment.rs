//! The variants of an example: crops and mirror images of the picture, orders of the caption's tags.
//!
//! Which ones there are is a function of the seed and the example; which one a step sees, of the seed and
//! the step.

use image::{RgbImage, imageops};
use rand::Rng;
use rand::seq::SliceRandom;
use soda_models::image::{Crop, resize_crop};
use soda_models::noise::generator;

use crate::config::AugmentConfig;
use crate::data::buckets::Size;
use crate::data::rng;

/// A part of a picture, perhaps mirrored, at the size that it is learnt at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// Of the whole picture.
    dimensions: (u32, u32),
    pub(crate) part: Crop,
    pub(crate) mirrored: bool,
    pub(crate) size: Size,
}

/// The views of picture `index`, of these dimensions, at a size; none twice.
pub(crate) fn views(
    dimensions: (u32, u32),
    size: Size,
    augment: &AugmentConfig,
    seed: u64,
    index: u64,
) -> Vec<View> {
    let mut rng = generator(seed, rng::CROP + index);
    let mut views = Vec::new();
    for _ in 0..augment.crops {
        let at = if augment.crops == 1 { [0.5; 2] } else { [rng.random(), rng.random()] };
        let part = Crop::largest(dimensions, size[0], size[1], at);
        for mirrored in [false, true].into_iter().take(1 + usize::from(augment.flip)) {
            let view = View { dimensions, part, mirrored, size };
            if !views.contains(&view) {
                views.push(view);
            }
        }
    }
    views
}

impl View {
    /// What it shows of `picture`.
    pub(crate) fn of(&self, picture: &RgbImage) -> RgbImage {
        let view = resize_crop(picture, self.part, self.size[0], self.size[1]);
        if self.mirrored { imageops::flip_horizontal(&view) } else { view }
    }

    /// SDXL's (arXiv 2307.01952, 2.2) ids: height and width of the picture, top and left of the crop in the
    /// picture as resized, height and width of the result. Of a mirrored view, in the mirrored picture.
    pub(crate) fn time_ids(&self) -> [f32; 6] {
        let (width, height) = self.dimensions;
        let Crop { x, y, width: columns, height: rows } = self.part;
        let x = if self.mirrored { width - columns - x } else { x };
        let resized = |pixels: u32, side: u32, part: u32| {
            (f64::from(pixels) * f64::from(side) / f64::from(part.max(1))).round() as f32
        };
        let [w, h] = self.size;
        let (top, left) = (resized(y, h, rows), resized(x, w, columns));
        [height as f32, width as f32, top, left, h as f32, w as f32]
    }
}

/// The caption of example `index` with its comma-separated tags in other orders; none twice.
pub(crate) fn captions(
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
    let mut captions = Vec::new();
    for _ in 0..augment.tag_orders {
        let mut tags = tags.clone();
        tags[augment.keep_tags..].shuffle(&mut rng);
        let caption = tags.join(", ");
        if !captions.contains(&caption) {
            captions.push(caption);
        }
    }
    captions
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn a_view_is_inside_the_picture_and_its_ids_say_where() {
        let picture = RgbImage::from_fn(300, 100, |x, y| Rgb([(x / 2) as u8, y as u8, 0]));
        let augment = AugmentConfig { crops: 4, flip: true, ..AugmentConfig::default() };
        let all = views(picture.dimensions(), [50, 50], &augment, 3, 0);
        assert_eq!(all.len(), 8);
        let mut places = Vec::new();
        for pair in all.chunks(2) {
            let [plain, mirrored] = [pair[0], pair[1]].map(|view| view.of(&picture));
            assert_eq!(imageops::flip_horizontal(&plain), mirrored);
            let [ids, mirrored] = [pair[0].time_ids(), pair[1].time_ids()];
            assert_eq!((ids[0], ids[1], ids[2], ids[4], ids[5]), (100.0, 300.0, 0.0, 50.0, 50.0));
            // Left and right of the crop add up to the rest, 200 pixels, at half the size.
            assert!((ids[3] + mirrored[3] - 100.0).abs() <= 1.0, "{ids:?} {mirrored:?}");
            // The column that the crop starts with, by its colour.
            let x = f32::from(plain.get_pixel(0, 25)[0]);
            assert!((x - ids[3]).abs() < 2.0, "{x} for {ids:?}");
            places.push(ids[3]);
        }
        assert!(places.windows(2).any(|pair| pair[0] != pair[1]));
        assert_eq!(all, views(picture.dimensions(), [50, 50], &augment, 3, 0));
        assert_ne!(all, views(picture.dimensions(), [50, 50], &augment, 3, 1));
        // A square has one crop, wherever it is taken.
        assert_eq!(views((80, 80), [50, 50], &augment, 3, 0).len(), 2);
        assert_eq!(views((300, 100), [50, 50], &AugmentConfig::default(), 3, 0).len(), 1);
    }

    /// From SDXL's ids alone, whatever the shapes: the part of the whole picture that is seen, to within the pixel
    /// that whole numbers leave.
    #[test]
    fn ids_invert_to_the_crop() {
        let augment = AugmentConfig { crops: 3, flip: true, ..AugmentConfig::default() };
        for (dimensions, size) in [
            ((300, 100), [64, 48]),
            ((97, 331), [40, 88]),
            ((48, 40), [96, 80]),
            ((50, 80), [64, 64]),
        ] {
            for view in views(dimensions, size, &augment, 3, 0) {
                let ids = view.time_ids().map(f64::from);
                let (whole, at, target) = ([ids[1], ids[0]], [ids[3], ids[2]], [ids[5], ids[4]]);
                // The picture covers the target, and no more than it must.
                let scale = (target[0] / whole[0]).max(target[1] / whole[1]);
                let Crop { x, y, width, height } = view.part;
                let x = if view.mirrored { dimensions.0 - width - x } else { x };
                for (axis, (start, length)) in [(x, width), (y, height)].into_iter().enumerate() {
                    let [found, part] = [at[axis], target[axis]].map(|pixels| pixels / scale);
                    // Half a pixel of the result, and what the part's whole sides make of the scale.
                    let error =
                        (0.5 / scale).max(0.5) + f64::from(start) / f64::from(width.min(height));
                    assert!((found - f64::from(start)).abs() <= error, "{ids:?} for {view:?}");
                    assert!((part - f64::from(length)).abs() <= 1.0, "{ids:?} for {view:?}");
                }
            }
        }
    }

    #[test]
    fn tags_change_places_and_none_is_lost() {
        let augment = AugmentConfig { tag_orders: 6, keep_tags: 1, ..AugmentConfig::default() };
        let all = captions("sks mug, red,  big, old", &augment, 1, 0);
        assert!(all.len() > 2 && all.len() <= 6, "{all:?}");
        for caption in &all {
            assert!(caption.starts_with("sks mug, "), "{caption}");
            let mut tags: Vec<_> = caption.split(", ").collect();
            tags.sort_unstable();
            assert_eq!(tags, ["big", "old", "red", "sks mug"]);
        }
        assert_eq!(all, captions("sks mug, red,  big, old", &augment, 1, 0));
        // Nothing to shuffle: the caption is left as it was written.
        assert_eq!(captions("a mug ,red", &augment, 1, 0), ["a mug ,red"]);
        assert_eq!(captions("a, b, c", &AugmentConfig::default(), 1, 0), ["a, b, c"]);
    }
}
