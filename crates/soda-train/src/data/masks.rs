//! Masked loss: the weight of each part of an image in the loss.
//!
//! Let `m` in [0, 1] be the mean of the mask over the pixels of a latent, `w` the weight of unmasked parts
//! and `e` the squared error of a channel of the latent. The error of a sample is
//!
//! ```text
//! mean c e     c = max(m, w),   or, normalised,   c = max(m, w) / mean max(m, w)
//! ```
//!
//! The mean is over all latents, as in kohya's sd-scripts (`apply_masked_loss`, with `w = 0`) and OneTrainer
//! (`masked_losses`, with `unmasked_weight` and `normalize_masked_area_loss`). `m` is the integral of the
//! mask over the latent's part of the image. Where that part has whole pixels, `m` equals PyTorch's
//! `interpolate(mode="area")`.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use image::GrayImage;
use soda_models::image::read_mask;

use crate::config::{MaskConfig, MaskSource};
use crate::data::augment::ImageVariant;
use crate::data::metadata::{composed, normal_forms};
use crate::error::{DataError, TrainError};

/// Suffixes of the names of masks beside their images: those of soda and of OneTrainer.
const SUFFIXES: &[&str] = &[".mask.png", "-masklabel.png"];
/// The folder of masks that are not beside their images.
pub(crate) const FOLDER: &str = "masks";

/// Whether a file of this name is a mask and not a training image.
pub(crate) fn is_mask(name: &str) -> bool {
    SUFFIXES.iter().any(|end| name.ends_with(end))
}

/// The mask file of an image, if there is one: `NAME.mask.png` or `NAME-masklabel.png` beside the image, or
/// `masks/NAME.png`. Its name may have another Unicode normal form.
///
/// White parts of a mask count in the loss.
pub fn mask_file(image: &Path) -> Option<PathBuf> {
    let (folder, stem) = (image.parent()?, image.file_stem()?.to_str()?);
    normal_forms(stem).into_iter().find_map(|stem| {
        let beside = SUFFIXES.iter().map(|end| folder.join(format!("{stem}{end}")));
        let mut all = beside.chain([folder.join(FOLDER).join(format!("{stem}.png"))]);
        all.find(|path| path.is_file())
    })
}

/// Finds the mask files of many images. The names of each folder are read once, so that images without a mask
/// cost no access to the disk.
///
/// A mask that is made after its folder was read is not found.
#[derive(Debug, Default)]
pub struct MaskFiles(HashMap<PathBuf, HashSet<String>>);

impl MaskFiles {
    /// The mask file of an image, as [`mask_file`] finds it.
    pub fn find(&mut self, image: &Path) -> Option<PathBuf> {
        let (folder, stem) = (image.parent()?, image.file_stem()?.to_str()?);
        if !self.0.contains_key(folder) {
            self.0.insert(folder.to_owned(), masked_stems(folder));
        }
        let is_masked = self.0.get(folder).is_some_and(|stems| stems.contains(&caseless(stem)));
        if is_masked { mask_file(image) } else { None }
    }
}

/// The names without their ends of all images of a folder that may have a mask, by [`caseless`].
fn masked_stems(folder: &Path) -> HashSet<String> {
    let names = |folder: &Path| {
        // A folder that cannot be read has no masks.
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some(caseless(entry.file_name().to_str()?)))
    };
    let stem = |name: &str, end: &str| name.strip_suffix(end).map(str::to_owned);
    let beside =
        names(folder).flat_map(|name| SUFFIXES.iter().filter_map(move |end| stem(&name, end)));
    let apart = names(&folder.join(FOLDER)).filter_map(|name| stem(&name, ".png"));
    beside.chain(apart).collect()
}

/// A name in lower case and composed: file systems that take names for equal give equal ones here.
fn caseless(name: &str) -> String {
    if name.is_ascii() { name.to_ascii_lowercase() } else { composed(&name.to_lowercase()) }
}

/// Returns an error if the data set has no masks, as far as that is known without reading images.
pub(crate) fn check<'a>(
    config: &MaskConfig,
    data: &Path,
    mut images: impl Iterator<Item = &'a Path>,
) -> Result<(), DataError> {
    if config.source == MaskSource::Alpha || images.any(|image| mask_file(image).is_some()) {
        return Ok(());
    }
    Err(no_masks(config, data))
}

/// The error that no image has a mask.
pub(crate) fn no_masks(config: &MaskConfig, data: &Path) -> DataError {
    let remedy = match config.source {
        MaskSource::Files => "put NAME.mask.png beside NAME, or NAME.png into a folder `masks`",
        MaskSource::Alpha => "save pictures with transparency",
    };
    DataError::NoMasks { path: data.to_owned(), remedy }
}

/// Reads the mask of a whole image, which has these dimensions (width, height) and possibly an alpha channel.
/// `None` if the image has no mask.
///
/// # Errors
/// Returns an error if the mask cannot be read, has another size than the image, or gives all parts the
/// weight 0.
pub(crate) fn read(
    config: &MaskConfig,
    image: &Path,
    (width, height): (u32, u32),
    alpha: Option<GrayImage>,
) -> Result<Option<GrayImage>, TrainError> {
    let (path, mask) = match config.source {
        MaskSource::Files => match mask_file(image) {
            Some(path) => (path.clone(), read_mask(&path)?),
            None => return Ok(None),
        },
        MaskSource::Alpha => match alpha {
            Some(alpha) => (image.to_owned(), alpha),
            None => return Ok(None),
        },
    };
    let refuse = |reason| Err(DataError::Mask { path, reason }.into());
    if mask.dimensions() != (width, height) {
        let (w, h) = mask.dimensions();
        return refuse(format!(
            "has {w} x {h} pixels and its picture {width} x {height}: make them alike"
        ));
    }
    if config.unmasked_weight == 0.0 && mask.pixels().all(|pixel| pixel[0] == 0) {
        return refuse(
            "is black everywhere, so that nothing of its picture counts: remove the picture, or set \
             `masks.unmasked_weight`"
                .to_owned(),
        );
    }
    Ok(Some(mask))
}

/// The weights of the latents of an image variant, row by row. A latent is `grid` pixels wide and high.
pub(crate) fn weights(
    config: &MaskConfig,
    mask: &GrayImage,
    variant: &ImageVariant,
    grid: u32,
) -> Vec<f32> {
    let [columns, rows] = variant.size.map(|side| (side / grid) as usize);
    let crop = variant.crop;
    let across: Vec<Vec<f64>> = (crop.y..crop.y + crop.height)
        .map(|y| {
            let row =
                (crop.x..crop.x + crop.width).map(|x| f64::from(mask.get_pixel(x, y)[0]) / 255.0);
            means(&row.collect::<Vec<_>>(), columns)
        })
        .collect();
    let down: Vec<Vec<f64>> = (0..columns)
        .map(|column| means(&across.iter().map(|row| row[column]).collect::<Vec<_>>(), rows))
        .collect();
    let column = |x: usize| if variant.flipped { columns - 1 - x } else { x };
    let floor = config.unmasked_weight;
    let all = (0..rows).flat_map(|y| (0..columns).map(move |x| (x, y)));
    let weights: Vec<f64> = all.map(|(x, y)| down[column(x)][y].max(floor)).collect();
    let mean = weights.iter().sum::<f64>() / weights.len().max(1) as f64;
    let scale = if config.normalize && mean > 0.0 { 1.0 / mean } else { 1.0 };
    weights.into_iter().map(|weight| (weight * scale) as f32).collect()
}

/// The mean of `values`, a step function, over each of `count` equal parts.
fn means(values: &[f64], count: usize) -> Vec<f64> {
    let length = values.len() as f64 / count as f64;
    let mean = |part: usize| {
        let (start, end) = (part as f64 * length, (part + 1) as f64 * length);
        let last = (end.ceil() as usize).min(values.len());
        let covered = (start as usize..last).map(|i| {
            let share = (end.min((i + 1) as f64) - start.max(i as f64)).max(0.0);
            share * values[i]
        });
        covered.sum::<f64>() / length
    };
    (0..count).map(mean).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use image::{Luma, imageops};

    use super::*;
    use crate::config::AugmentConfig;
    use crate::data::augment::image_variants;

    fn mask(width: u32, height: u32) -> GrayImage {
        GrayImage::from_fn(width, height, |x, y| Luma([((7 * x + 13 * y * y) % 256) as u8]))
    }

    #[test]
    fn means_preserve_the_integral_and_constants() {
        let values: Vec<f64> = (0..13).map(|i| f64::from(i * i % 5)).collect();
        for count in [1, 2, 5, 13, 20] {
            let found = means(&values, count);
            let (sum, whole) =
                (found.iter().sum::<f64>() / count as f64, values.iter().sum::<f64>());
            assert!((sum - whole / 13.0).abs() < 1e-12, "{count}: {found:?}");
            assert!(means(&[0.5; 13], count).iter().all(|mean| (mean - 0.5).abs() < 1e-12));
        }
        assert_eq!(means(&[1.0, 2.0, 3.0, 6.0], 2), [1.5, 4.5]);
    }

    /// Cropping and mirroring the mask as an image gives the same weights.
    #[test]
    fn a_mask_is_transformed_like_its_image() {
        let config = MaskConfig { unmasked_weight: 0.0, ..MaskConfig::default() };
        let augment = AugmentConfig { crops: 3, flip: true, ..AugmentConfig::default() };
        let whole = mask(120, 80);
        for variant in image_variants((120, 80), [40, 40], &augment, 1, 0) {
            let crop = variant.crop;
            let mut seen =
                imageops::crop_imm(&whole, crop.x, crop.y, crop.width, crop.height).to_image();
            if variant.flipped {
                seen = imageops::flip_horizontal(&seen);
            }
            let plain =
                image_variants(seen.dimensions(), [40, 40], &AugmentConfig::default(), 0, 0)[0];
            let (found, expected) =
                (weights(&config, &whole, &variant, 8), weights(&config, &seen, &plain, 8));
            assert_eq!(found.len(), 25);
            let error = soda_testing::max_abs_diff(&found, &expected);
            assert!(error < 1e-6, "{error}");
        }
    }

    #[test]
    fn unmasked_weight_is_a_floor_and_normalising_makes_the_mean_one() {
        let black_and_white =
            GrayImage::from_fn(16, 16, |x, _| Luma([if x < 12 { 0 } else { 255 }]));
        let variant = image_variants((16, 16), [16, 16], &AugmentConfig::default(), 0, 0)[0];
        let config = MaskConfig { unmasked_weight: 0.2, ..MaskConfig::default() };
        let row = [0.2, 0.2, 0.2, 1.0];
        assert_eq!(weights(&config, &black_and_white, &variant, 4), row.repeat(4));
        let config = MaskConfig { normalize: true, ..config };
        let found = weights(&config, &black_and_white, &variant, 4);
        assert!(
            (found.iter().sum::<f32>() / 16.0 - 1.0).abs() < 1e-6 && found[3] == 5.0 * found[0]
        );
        let nothing = MaskConfig { unmasked_weight: 0.0, ..config };
        assert_eq!(weights(&nothing, &GrayImage::new(16, 16), &variant, 4), [0.0; 16]);
    }

    #[test]
    fn masks_are_found_and_must_have_the_size_of_their_image() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("masks")).unwrap();
        for name in ["a.mask.png", "b-masklabel.png", "masks/c.png"] {
            mask(6, 4).save(at(name)).unwrap();
        }
        for (image, expected) in
            [("a.jpg", "a.mask.png"), ("b.png", "b-masklabel.png"), ("c.webp", "masks/c.png")]
        {
            assert_eq!(mask_file(&at(image)), Some(at(expected)));
        }
        assert_eq!(mask_file(&at("d.png")), None);
        // Reading the names of the folder once finds the same.
        let mut files = MaskFiles::default();
        for image in ["a.jpg", "b.png", "c.webp", "d.png", "masks/c.png", "B.png", "nowhere/a.png"]
        {
            assert_eq!(files.find(&at(image)), mask_file(&at(image)), "{image}");
        }
        let config = MaskConfig::default();
        assert_eq!(read(&config, &at("a.jpg"), (6, 4), None).unwrap(), Some(mask(6, 4)));
        assert_eq!(read(&config, &at("d.png"), (6, 4), Some(mask(6, 4))).unwrap(), None);
        let message = read(&config, &at("a.jpg"), (4, 6), None).unwrap_err().to_string();
        assert!(message.contains("a.mask.png has 6 x 4 pixels and its picture 4 x 6"), "{message}");
        let config = MaskConfig { source: MaskSource::Alpha, unmasked_weight: 0.0, ..config };
        assert_eq!(
            read(&config, &at("a.jpg"), (6, 4), Some(mask(6, 4))).unwrap(),
            Some(mask(6, 4))
        );
        let message = read(&config, &at("a.jpg"), (6, 4), Some(GrayImage::new(6, 4))).unwrap_err();
        assert!(message.to_string().contains("black everywhere"), "{message}");
    }
}
