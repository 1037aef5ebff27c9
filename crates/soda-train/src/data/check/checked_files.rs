//! What image files and their masks hold, kept between checks of a folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use soda_models::ModelError;
use soda_models::image::{read_mask, read_rgb};

use super::finding::FindingKind;
use super::perceptual_hash::dhash;

/// The most files that are kept, some 300 bytes each.
const MAX_KEPT: usize = 200_000;

/// Width and height of an image, or why it cannot be read.
type Size = Result<(u32, u32), String>;

/// What image files held when they were last read, so that another check reads only those that changed.
///
/// A file counts as unchanged while it has the same length and time of change.
#[derive(Debug, Default)]
pub struct CheckedFiles(Mutex<HashMap<PathBuf, (Stamp, ImageContent)>>);

/// Lengths and times of change of an image and of its mask.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    image: (u64, SystemTime),
    mask: Option<(PathBuf, u64, SystemTime)>,
}

/// What one image file and its mask hold.
#[derive(Clone, Debug)]
pub(super) struct ImageContent {
    pub(super) image: Size,
    pub(super) hash: Option<u64>,
    pub(super) mask: Option<(PathBuf, Size)>,
}

impl CheckedFiles {
    /// The content of an image and of its mask, which are read if they changed.
    pub(super) fn content(&self, image: &Path, mask: Option<PathBuf>) -> ImageContent {
        // Before the content: what is written meanwhile is read again the next time.
        let stamp = Stamp::of(image, mask.as_deref());
        let kept = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(stamp), Some((known, content))) = (&stamp, kept().get(image))
            && stamp == known
        {
            return content.clone();
        }
        let content = ImageContent::read(image, mask);
        if let Some(stamp) = stamp {
            let mut kept = kept();
            if kept.len() >= MAX_KEPT {
                kept.clear();
            }
            kept.insert(image.to_owned(), (stamp, content.clone()));
        }
        content
    }
}

impl Stamp {
    /// `None` for files whose length or time of change is not known.
    fn of(image: &Path, mask: Option<&Path>) -> Option<Self> {
        let of = |path: &Path| {
            let data = std::fs::metadata(path).ok()?;
            Some((data.len(), data.modified().ok()?))
        };
        let mask = match mask {
            Some(path) => of(path).map(|(length, time)| Some((path.to_owned(), length, time)))?,
            None => None,
        };
        Some(Self { image: of(image)?, mask })
    }
}

/// The reason why a picture or a mask cannot be read, and the remedy.
fn refusal(error: &ModelError) -> String {
    match error {
        // What is wrong with an image has its own remedy.
        ModelError::Image(error) => error.to_string(),
        error => format!("{error}; repair or remove it"),
    }
}

impl ImageContent {
    pub(super) fn read(image: &Path, mask: Option<PathBuf>) -> Self {
        let image = read_rgb(image).map_err(|error| refusal(&error));
        let hash = image.as_ref().ok().map(dhash);
        let mask = mask.map(|path| {
            let size = read_mask(&path).map(|mask| mask.dimensions());
            (path, size.map_err(|error| refusal(&error)))
        });
        Self { image: image.map(|image| image.dimensions()), hash, mask }
    }

    /// The findings of the image and its mask.
    pub(super) fn kinds(&self, resolution: Option<u32>) -> Vec<FindingKind> {
        let mut kinds = Vec::new();
        match (&self.image, resolution) {
            (Err(reason), _) => kinds.push(FindingKind::Unreadable { reason: reason.clone() }),
            (Ok((width, height)), Some(resolution)) if *width.min(height) < resolution => {
                let (width, height) = (*width, *height);
                kinds.push(FindingKind::TooSmall { width, height, resolution });
            }
            _ => {}
        }
        match (&self.mask, &self.image) {
            (Some((mask, Err(reason))), _) => {
                let (mask, reason) = (mask.clone(), reason.clone());
                kinds.push(FindingKind::UnreadableMask { mask, reason });
            }
            (Some((mask, Ok(mask_size))), Ok(size)) if mask_size != size => {
                kinds.push(FindingKind::MaskSize {
                    mask: mask.clone(),
                    mask_size: *mask_size,
                    size: *size,
                });
            }
            _ => {}
        }
        kinds
    }
}
