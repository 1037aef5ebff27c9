//! dHash, a perceptual hash of 64 bits, and the pairs of images that it finds alike.
//!
//! Neal Krawetz, "Kind of Like That" (hackerfactor.com, archive 529, 2013): the image is reduced to 9 x 8
//! grey values, and a bit says whether a value is less than its right neighbour. By his rule a distance of 0
//! means the same image, up to 10 possibly a variation, and above 10 another image.
//!
//! The bundled toybox subjects confirm the threshold of 10. Two pictures of one subject differ by 16 bits or
//! more. A copy at half the size or as JPEG of quality 40 differs by 10 bits or less.

use image::RgbImage;
use soda_models::image::{Filter, resize};

/// The largest distance of two hashes whose images count as near-duplicates.
const MAX_DISTANCE: u32 = 10;
/// The most images that are compared pair by pair.
pub(super) const MAX_COMPARED: usize = 50_000;

/// The hash of an image.
pub(super) fn dhash(image: &RgbImage) -> u64 {
    let small = resize(image, 9, 8, Filter::Bilinear);
    // Rec. 601, in integers.
    let grey = |x: u32, y: u32| {
        let [r, g, b] = small.get_pixel(x, y).0.map(u32::from);
        299 * r + 587 * g + 114 * b
    };
    let bits = (0..8).flat_map(|y| (0..8).map(move |x| grey(x, y) < grey(x + 1, y)));
    bits.fold(0, |hash, bit| hash << 1 | u64::from(bit))
}

/// For each image the nearest earlier one within [`MAX_DISTANCE`], with the distance. An image without a hash
/// has none.
pub(super) fn near_duplicates(hashes: &[Option<u64>]) -> Vec<Option<(usize, u32)>> {
    if hashes.len() > MAX_COMPARED {
        return vec![None; hashes.len()];
    }
    let nearest = |index: usize| {
        let hash = hashes[index]?;
        let earlier = hashes[..index].iter().enumerate();
        let distances = earlier
            .filter_map(|(other, found)| found.map(|found| (other, (hash ^ found).count_ones())));
        distances.filter(|(_, distance)| *distance <= MAX_DISTANCE).min_by_key(|pair| pair.1)
    };
    (0..hashes.len()).map(nearest).collect()
}
