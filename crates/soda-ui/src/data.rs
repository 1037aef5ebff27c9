//! Data folders, by ids: their pictures, captions and findings.

use std::collections::{HashMap, HashSet};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use image::{DynamicImage, GrayImage, ImageFormat, Luma, RgbImage};
use serde::Serialize;
use soda_models::image::{Filter, read_mask, read_rgb, read_rgb_and_alpha, resize};
use soda_train::{
    CaptionTokenizers, CheckedFiles, DataCheck, DataCheckConfig, ListedImage, MaskFiles,
    MaskSource, TrainError, mask_file, write_caption,
};

use crate::id::{id_of, is_file_below};

/// The longer side of a picture in the grid, in pixels.
pub(crate) const THUMBNAIL: u32 = 320;
/// The longer side of a picture whose mask is painted, in pixels.
pub(crate) const LARGE: u32 = 1280;
/// The pictures of one answer. Ten thousand at once would take the browser seconds.
const AT_ONCE: usize = 300;
/// The most characters of a caption.
const MAX_CAPTION: usize = 10_000;

/// A picture of a folder.
#[derive(Debug)]
struct Picture {
    id: String,
    has_mask: bool,
    listed: ListedImage,
}

impl Picture {
    fn shown(&self, root: &Path) -> Result<ShownPicture<'_>, TrainError> {
        let Self { id, has_mask, listed } = self;
        let name = listed.image.strip_prefix(root).unwrap_or(&listed.image).display().to_string();
        let (caption, repeats) = (listed.caption()?, listed.repeats);
        Ok(ShownPicture { id, name, caption, repeats, has_mask: *has_mask })
    }
}

/// A picture in the grid.
#[derive(Debug, Serialize)]
pub(crate) struct ShownPicture<'a> {
    id: &'a str,
    name: String,
    caption: String,
    repeats: usize,
    /// Whether a file masks parts of it.
    has_mask: bool,
}

/// The pictures of a folder when it was last listed.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) root: PathBuf,
    pictures: Vec<Picture>,
}

/// A finding about a picture of the folder or about another file.
#[derive(Debug, Serialize)]
pub(crate) struct ShownFinding {
    /// The id of the picture, if the finding is about one.
    picture: Option<String>,
    kind: &'static str,
    text: String,
    prevents_training: bool,
}

/// The folders that were listed, so that a picture is found without reading its folder again.
#[derive(Default)]
pub(crate) struct DataFolders {
    listings: Mutex<HashMap<String, Arc<Listing>>>,
    /// What the pictures held at earlier checks. One check runs at a time: it takes all cores.
    checked: Mutex<CheckedFiles>,
}

impl DataFolders {
    /// Reads the names of a folder.
    ///
    /// # Errors
    /// The error of a folder that cannot be read.
    pub(crate) fn list(&self, folder: &Path) -> Result<Arc<Listing>, TrainError> {
        let mut masks = MaskFiles::default();
        let pictures = ListedImage::list(folder)?.into_iter().map(|listed| Picture {
            id: id_of(&listed.image),
            has_mask: masks.find(&listed.image).is_some(),
            listed,
        });
        let listing = Listing { root: folder.to_owned(), pictures: pictures.collect() };
        let listing = Arc::new(listing);
        let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        listings.insert(id_of(folder), Arc::clone(&listing));
        Ok(listing)
    }

    /// The listing of the folder with this id, if it was listed.
    pub(crate) fn known(&self, id: &str) -> Option<Arc<Listing>> {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }
}

impl Listing {
    /// The number of pictures, and that of those with a mask file.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let masked = self.pictures.iter().filter(|picture| picture.has_mask);
        (self.pictures.len(), masked.count())
    }

    /// Up to [`AT_ONCE`] pictures from the place `start` on, whose captions are read.
    ///
    /// # Errors
    /// The error of a caption that cannot be read.
    pub(crate) fn shown(&self, start: usize) -> Result<Vec<ShownPicture<'_>>, TrainError> {
        self.pictures.iter().skip(start).take(AT_ONCE).map(|one| one.shown(&self.root)).collect()
    }

    /// The file of the picture with this id. `None` if a link leads out of the folder.
    pub(crate) fn file(&self, id: &str) -> Option<&Path> {
        let picture = self.pictures.iter().find(|picture| picture.id == id)?;
        let path = &picture.listed.image;
        is_file_below(&self.root, path).then_some(path)
    }

    /// A picture whose longer side is at most `side`, as PNG.
    pub(crate) fn picture(&self, id: &str, side: u32) -> Option<Vec<u8>> {
        reduced(read_rgb(self.file(id)?).ok()?, side)
    }

    /// The mask of a picture, whose longer side is at most `side`, as PNG: white where the loss counts.
    ///
    /// A picture without an alpha channel counts everywhere where that is the source.
    pub(crate) fn mask(&self, id: &str, source: MaskSource, side: u32) -> Option<Vec<u8>> {
        let picture = self.file(id)?;
        let mask = match source {
            MaskSource::Files => {
                let file = mask_file(picture).filter(|path| is_file_below(&self.root, path))?;
                read_mask(&file).ok()?
            }
            MaskSource::Alpha => {
                let (picture, alpha) = read_rgb_and_alpha(picture).ok()?;
                let (width, height) = picture.dimensions();
                alpha.unwrap_or_else(|| GrayImage::from_pixel(width, height, Luma([255])))
            }
        };
        reduced(DynamicImage::from(mask).into_rgb8(), side)
    }

    /// Writes the caption of a picture. False if there is no such picture.
    ///
    /// # Errors
    /// A sentence for a caption that cannot be written.
    pub(crate) fn write_caption(&self, id: &str, caption: &str) -> Result<bool, String> {
        if caption.chars().count() > MAX_CAPTION {
            return Err(format!("a caption has at most {MAX_CAPTION} characters"));
        }
        let Some(path) = self.file(id) else { return Ok(false) };
        // A line break would end the line of a list, and other tools read the first line only.
        let caption = caption.split_whitespace().collect::<Vec<_>>().join(" ");
        write_caption(&self.root, path, &caption).map_err(|error| error.to_string())?;
        Ok(true)
    }
}

/// A picture whose longer side is at most `side`, as PNG.
fn reduced(picture: RgbImage, side: u32) -> Option<Vec<u8>> {
    let (width, height) = fitted(picture.dimensions(), side);
    let small = match (width, height) == picture.dimensions() {
        true => picture,
        false => resize(&picture, width, height, Filter::Bilinear),
    };
    let mut bytes = Cursor::new(Vec::new());
    small.write_to(&mut bytes, ImageFormat::Png).ok()?;
    Some(bytes.into_inner())
}

/// The size of a picture whose longer side is reduced to `side`. A smaller picture keeps its size.
pub(crate) fn fitted((width, height): (u32, u32), side: u32) -> (u32, u32) {
    let scale = f64::from(side) / f64::from(width.max(height));
    let fit = |length: u32| ((f64::from(length) * scale) as u32).max(1);
    if scale < 1.0 { (fit(width), fit(height)) } else { (width, height) }
}

/// What a folder is checked against, as far as it is known.
#[derive(Default)]
pub(crate) struct CheckSettings {
    /// The side of the training images in pixels.
    pub(crate) resolution: Option<u32>,
    /// The base model of a run on the folder: the last one by name.
    pub(crate) base: Option<PathBuf>,
    pub(crate) prompt: Option<String>,
    pub(crate) trigger: Option<String>,
}

impl DataFolders {
    /// Checks a folder. Returns the findings and the names of the parts that were not checked.
    ///
    /// # Errors
    /// The error of a folder that cannot be read.
    pub(crate) fn check(
        &self,
        folder: &Path,
        settings: &CheckSettings,
    ) -> Result<(Vec<ShownFinding>, Vec<&'static str>), TrainError> {
        let checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        check(folder, settings, &checked)
    }
}

fn check(
    folder: &Path,
    settings: &CheckSettings,
    checked: &CheckedFiles,
) -> Result<(Vec<ShownFinding>, Vec<&'static str>), TrainError> {
    // A base that is gone leaves the length of the captions unchecked, which the answer says.
    let base = settings.base.as_deref();
    let tokenizers = base.and_then(|base| CaptionTokenizers::from_dir(base).ok());
    let config = DataCheckConfig {
        prompt: settings.prompt.as_deref(),
        trigger: settings.trigger.as_deref(),
        resolution: settings.resolution,
        tokenizers: tokenizers.as_ref(),
        checked: Some(checked),
    };
    let found = DataCheck::new(folder, &config, &mut |_, _| ())?;
    let pictures: HashSet<&Path> =
        found.images.iter().map(|image| image.example.image.as_path()).collect();
    let prefix = format!("{}{}", folder.display(), std::path::MAIN_SEPARATOR);
    let findings = found.findings.iter().map(|finding| ShownFinding {
        picture: pictures.contains(&*finding.path).then(|| id_of(&finding.path)),
        kind: finding.kind.name(),
        text: finding.to_string().replace(&prefix, ""),
        prevents_training: finding.kind.prevents_training(),
    });
    Ok((findings.collect(), found.unchecked.iter().map(|part| part.name()).collect()))
}
