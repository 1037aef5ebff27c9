//! Masks that the page paints.
//!
//! | bound | value |
//! |---|---|
//! | bytes of a mask | [`MAX_BYTES`] |
//! | pixels of a side | [`LARGE`], checked before they are decoded |
//! | format, by content | PNG |
//!
//! A mask is painted over the picture as [`LARGE`] shows it, and is enlarged to the picture's size. Its
//! pixels are encoded anew, in grey, so that no byte of a request reaches the disk. Its name is that of the
//! picture.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, GrayImage, ImageFormat, ImageReader};
use serde::Deserialize;
use soda_models::image::{Filter, read_rgb, resize};
use soda_train::mask_file;

use crate::data::{LARGE, Listing, fitted};
use crate::id::is_file_below;
use crate::uploads::{Uploads, check_count};

/// The most bytes of a request with a mask, which is base64 in JSON.
pub(crate) const MAX_BODY: usize = MAX_BYTES / 3 * 4 + 4096;
/// The most bytes of a mask. One of noise has 3 bytes a pixel.
const MAX_BYTES: usize = 6 << 20;

/// The body of a request with a mask.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MaskForm {
    /// A PNG, base64: white where the loss counts.
    mask: String,
}

impl Uploads {
    /// Stores the mask of a picture as the file that a training reads. An earlier one is replaced. False if
    /// there is no such picture.
    ///
    /// # Errors
    /// A sentence that says why the mask is refused.
    pub(crate) fn store_mask(
        &self,
        listing: &Listing,
        id: &str,
        form: &MaskForm,
    ) -> Result<bool, String> {
        let Some(picture) = listing.file(id) else { return Ok(false) };
        let bytes = STANDARD.decode(&form.mask);
        let bytes = bytes.map_err(|error| format!("the mask is not base64: {error}"))?;
        if bytes.len() > MAX_BYTES {
            return Err(format!("a mask has at most {} MiB", MAX_BYTES >> 20));
        }
        let (width, height) = size_of(&bytes)?;
        let target = target(&listing.root, picture)?;
        let _one = self.one_at_a_time();
        if let Some(folder) = target.parent().filter(|_| !target.exists()) {
            check_count(folder)?;
        }
        let unreadable = |_| "the picture cannot be read, so that nothing masks it".to_owned();
        let size = read_rgb(picture).map_err(unreadable)?.dimensions();
        let shown = fitted(size, LARGE);
        if (width, height) != shown {
            let (w, h) = shown;
            return Err(format!(
                "the mask has {width} x {height} pixels and the picture as shown {w} x {h}: open it again"
            ));
        }
        let mask = image::load_from_memory_with_format(&bytes, ImageFormat::Png);
        let mask = mask.map_err(|error| format!("the mask is damaged: {error}"))?.into_luma8();
        if mask.pixels().all(|pixel| pixel[0] == 0) {
            return Err("the mask is black everywhere, so that nothing of its picture counts: paint what counts"
                .to_owned());
        }
        let written = |error: String| format!("cannot write the mask: {error}");
        let png = encoded(&enlarged(mask, size)).map_err(written)?;
        soda_files::write(&target, &png).map_err(|error| written(error.to_string()))?;
        Ok(true)
    }
}

/// Width and height of a PNG that is small enough to be decoded.
fn size_of(bytes: &[u8]) -> Result<(u32, u32), String> {
    if image::guess_format(bytes).ok() != Some(ImageFormat::Png) {
        return Err("a mask is a PNG".to_owned());
    }
    let reader = ImageReader::with_format(Cursor::new(bytes), ImageFormat::Png);
    let size = reader.into_dimensions().map_err(|error| format!("the mask is damaged: {error}"))?;
    if size.0.max(size.1) > LARGE {
        return Err(format!("a mask has at most {LARGE} pixels at a side, and is enlarged"));
    }
    Ok(size)
}

/// The file of the mask that a training reads for a picture, or would read.
fn target(root: &Path, picture: &Path) -> Result<PathBuf, String> {
    let outside = || "the mask would lie outside of the folder: remove the link".to_owned();
    match mask_file(picture) {
        Some(mask) if is_file_below(root, &mask) => return Ok(mask),
        Some(_) => return Err(outside()),
        None => {}
    }
    let stem = picture.file_stem().and_then(|stem| stem.to_str());
    let (Some(folder), Some(stem)) = (picture.parent(), stem) else {
        return Err("the name of the picture is not UTF-8: rename it".to_owned());
    };
    match (root.canonicalize(), folder.canonicalize()) {
        (Ok(root), Ok(folder)) if folder.starts_with(&root) => {}
        _ => return Err(outside()),
    }
    Ok(folder.join(format!("{stem}.mask.png")))
}

/// A mask at the size of its picture.
fn enlarged(mask: GrayImage, (width, height): (u32, u32)) -> GrayImage {
    if mask.dimensions() == (width, height) {
        return mask;
    }
    let mask = resize(&DynamicImage::from(mask).into_rgb8(), width, height, Filter::Bilinear);
    DynamicImage::from(mask).into_luma8()
}

fn encoded(mask: &GrayImage) -> Result<Vec<u8>, String> {
    let mut bytes = Cursor::new(Vec::new());
    mask.write_to(&mut bytes, ImageFormat::Png).map_err(|error| error.to_string())?;
    Ok(bytes.into_inner())
}
