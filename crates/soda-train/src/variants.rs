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
use crate::streams;

/// A square part of a picture, perhaps mirrored, at the model's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// Of the whole picture.
    dimensions: (u32, u32),
    part: Crop,
    mirrored: bool,
    size: u32,
}

/// The views of picture `index`, of these dimensions, for a model of `size` pixels; none twice.
pub(crate) fn views(
    dimensions: (u32, u32),
    size: u32,
    augment: &AugmentConfig,
    seed: u64,
    index: u64,
) -> Vec<View> {
    let mut rng = generator(seed, streams::CROP + index);
    let mut views = Vec::new();
    for _ in 0..augment.crops {
        let at = if augment.crops == 1 { [0.5; 2] } else { [rng.random(), rng.random()] };
        let part = Crop::largest(dimensions, size, size, at);
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
    /// What it shows of `picture`, `size` x `size`.
    pub(crate) fn of(&self, picture: &RgbImage) -> RgbImage {
        let view = resize_crop(picture, self.part, self.size, self.size);
        if self.mirrored { imageops::flip_horizontal(&view) } else { view }
    }

    /// SDXL's (arXiv 2307.01952, 2.2) ids: height and width of the picture, top and left of the crop in the
    /// picture as resized, height and width of the result. Of a mirrored view, in the mirrored picture.
    pub(crate) fn time_ids(&self) -> [f32; 6] {
        let (width, height) = self.dimensions;
        let Crop { x, y, width: part, .. } = self.part;
        let x = if self.mirrored { width - part - x } else { x };
        let scale = f64::from(self.size) / f64::from(part.max(1));
        let resized = |pixels: u32| (f64::from(pixels) * scale).round() as f32;
        let size = self.size as f32;
        [height as f32, width as f32, resized(y), resized(x), size, size]
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
    let mut rng = generator(seed, streams::TAGS + index);
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
        let all = views(picture.dimensions(), 50, &augment, 3, 0);
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
        assert_eq!(all, views(picture.dimensions(), 50, &augment, 3, 0));
        assert_ne!(all, views(picture.dimensions(), 50, &augment, 3, 1));
        // A square has one crop, wherever it is taken.
        assert_eq!(views((80, 80), 50, &augment, 3, 0).len(), 2);
        assert_eq!(views((300, 100), 50, &AugmentConfig::default(), 3, 0).len(), 1);
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
