//! The pictures of a data folder: its own, those of folders with a number of repeats in their name, and those
//! that `metadata.jsonl` names in other folders.

mod example;
mod listed_image;
mod listing;
mod skipped;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

pub use self::example::Example;
pub use self::listed_image::ListedImage;
pub(crate) use self::listing::list;
use self::listing::{entries, file_name, find, is_image, is_unsupported_image};
use self::skipped::MAX_LOOKED_AT;
pub use self::skipped::{DataFolder, Skipped};
use crate::data::masks;
use crate::data::metadata::{Metadata, MetadataEntry, read_caption_file};
use crate::error::{DataError, TrainError};

/// The most samples of an epoch, repeats counted. The order of an epoch is a list in memory.
const MAX_SAMPLES: usize = 10_000_000;
/// Files of Hugging Face datasets and of kohya's scripts that could hold captions and are not read.
const OTHER_METADATA: &[&str] = &[
    "metadata.csv",
    "metadata.parquet",
    "meta_cap.json",
    "meta_clean.json",
    "meta_cap_dd.json",
    "meta_lat.json",
];
/// The names of folders in a data folder that have a purpose of their own.
const RESERVED: &[&str] = &["masks", "truth", "__MACOSX"];

/// What a data folder holds.
#[derive(Default)]
pub(super) struct FolderContents {
    /// The images of the folder itself by name, then those of its folders.
    pub(super) examples: Vec<Example>,
    /// The folders of the images, in the order of the images.
    pub(super) folders: Vec<DataFolder>,
    pub(super) skipped: Vec<Skipped>,
    captions: Captions,
    /// The images that have no caption.
    pub(super) uncaptioned: HashSet<PathBuf>,
}

/// Which captions are read.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Captions {
    /// All. An image without one is an error.
    #[default]
    Required,
    /// All. An image without one is an example with an empty one.
    Optional,
    /// Those of lists only. Text files are not opened, and all other images count as having none.
    Listed,
}

/// One folder and the captions of its images.
struct Subset<'a> {
    folder: &'a Path,
    /// The caption of images that have none.
    prompt: Option<&'a str>,
    repeats: usize,
}

impl FolderContents {
    /// Reads a folder. `prompt` is the caption of images without another one.
    pub(super) fn read(folder: &Path, prompt: Option<&str>) -> Result<Self, TrainError> {
        Self::read_captions(folder, prompt, Captions::Required)
    }

    /// Reads a folder as [`FolderContents::read`], but lists images without a caption.
    pub(super) fn read_for_check(folder: &Path, prompt: Option<&str>) -> Result<Self, TrainError> {
        Self::read_captions(folder, prompt, Captions::Optional)
    }

    fn read_captions(
        folder: &Path,
        prompt: Option<&str>,
        captions: Captions,
    ) -> Result<Self, TrainError> {
        Self { captions, ..Self::default() }.read_folder(folder, prompt)
    }

    fn read_folder(mut self, folder: &Path, prompt: Option<&str>) -> Result<Self, TrainError> {
        if !folder.is_dir() {
            return Err(DataError::NoFolder(folder.to_owned()).into());
        }
        let contents = &mut self;
        let mut metadata = Metadata::read(folder)?;
        let subset = Subset { folder, prompt, repeats: 1 };
        let subfolders = contents.read_subset(&subset, &mut |name| metadata.take(name))?;
        let mut unread = Vec::new();
        for path in subfolders {
            let name = file_name(&path);
            match repeats_and_caption(&name) {
                None | Some((0, _)) => unread.push(path),
                Some((repeats, caption)) => {
                    let subset = Subset { folder: &path, prompt: Some(caption), repeats };
                    let mut own = Metadata::read(&path)?;
                    // The folder's own list comes first. A line that the other has as well is used up.
                    let mut take = |image: &str| {
                        let outer = metadata.take(&format!("{name}/{image}"));
                        own.take(image).or(outer)
                    };
                    unread.extend(contents.read_subset(&subset, &mut take)?);
                    contents.read_named(&subset, &mut own)?;
                }
            }
        }
        contents.read_named(&subset, &mut metadata)?;
        contents.report_unread(unread);
        contents.check(folder)?;
        Ok(self)
    }

    /// Reads the images of one folder. `take` gives the metadata of an image. Returns its folders.
    fn read_subset(
        &mut self,
        subset: &Subset<'_>,
        take: &mut dyn FnMut(&str) -> Option<MetadataEntry>,
    ) -> Result<Vec<PathBuf>, TrainError> {
        let mut subfolders = Vec::new();
        for (path, is_folder) in entries(subset.folder)? {
            let name = file_name(&path);
            if OTHER_METADATA.contains(&&*name) {
                self.skipped.push(Skipped::Captions(path));
            } else if is_folder {
                if !RESERVED.contains(&&*name) {
                    subfolders.push(path);
                }
            } else if is_unsupported_image(&path) {
                take(&name);
                self.skipped.push(Skipped::Format(path));
            } else if is_image(&path) && !masks::is_mask(&name) {
                let entry = take(&name);
                self.add(subset, path, entry)?;
            }
        }
        Ok(subfolders)
    }

    /// Reads the images that the metadata of a folder names in its subfolders.
    fn read_named(&mut self, at: &Subset<'_>, metadata: &mut Metadata) -> Result<(), TrainError> {
        for (name, entry) in metadata.take_nested() {
            let line = entry.line;
            let path = find(at.folder, &name)?.ok_or_else(|| metadata.no_picture(&name, line))?;
            if is_unsupported_image(&path) {
                self.skipped.push(Skipped::Format(path));
                continue;
            }
            if !is_image(&path) || masks::is_mask(&name) {
                return Err(metadata.no_picture(&name, line).into());
            }
            let parent = path.parent().unwrap_or(at.folder).to_owned();
            self.add(&Subset { folder: &parent, ..*at }, path, Some(entry))?;
        }
        Ok(metadata.check_used()?)
    }

    /// Adds one image.
    fn add(
        &mut self,
        subset: &Subset<'_>,
        image: PathBuf,
        entry: Option<MetadataEntry>,
    ) -> Result<(), TrainError> {
        let own = entry.as_ref().and_then(|entry| entry.repeats).unwrap_or(1);
        let caption = match entry {
            Some(entry) => entry.text,
            None => {
                let is_listing = self.captions == Captions::Listed;
                let beside = if is_listing { None } else { read_caption_file(&image)? };
                let found = beside.or_else(|| subset.prompt.map(str::to_owned));
                if found.is_none() && self.captions == Captions::Required {
                    return Err(DataError::NoCaption(image).into());
                }
                if found.is_none() || is_listing {
                    self.uncaptioned.insert(image.clone());
                }
                found.unwrap_or_default()
            }
        };
        match self.folders.iter_mut().find(|folder| folder.path == subset.folder) {
            Some(folder) => folder.images += 1,
            None => self.folders.push(DataFolder {
                path: subset.folder.to_owned(),
                images: 1,
                repeats: subset.repeats,
            }),
        }
        let repeats = subset.repeats.saturating_mul(own);
        self.examples.push(Example { image, caption, repeats });
        Ok(())
    }

    /// Notes the folders with images that are not trained.
    fn report_unread(&mut self, folders: Vec<PathBuf>) {
        let mut budget = MAX_LOOKED_AT;
        for path in folders {
            let count = self.count_unread(&path, &mut budget);
            if count > 0 {
                self.skipped.push(match repeats_and_caption(&file_name(&path)) {
                    Some((0, _)) => Skipped::NoRepeats(path, count),
                    _ => Skipped::Unnamed(path, count),
                });
            }
        }
    }

    /// Counts the images in a folder and below that are no examples, among the next `budget` files.
    fn count_unread(&self, folder: &Path, budget: &mut usize) -> usize {
        let mut count = 0;
        // A folder that cannot be read has no image to miss.
        for path in list(folder).unwrap_or_default() {
            if *budget == 0 {
                break;
            }
            *budget -= 1;
            if path.is_dir() {
                // A link may lead back here.
                if !path.is_symlink() && !RESERVED.contains(&&*file_name(&path)) {
                    count += self.count_unread(&path, budget);
                }
            } else if is_image(&path)
                && !masks::is_mask(&file_name(&path))
                && self.examples.iter().all(|example| example.image != path)
            {
                count += 1;
            }
        }
        count
    }

    /// # Errors
    /// Returns an error if there is no image, or if an epoch has more than [`MAX_SAMPLES`] samples.
    fn check(&self, folder: &Path) -> Result<(), DataError> {
        let path = folder.to_owned();
        let Some(most) = self.examples.iter().max_by_key(|example| example.repeats) else {
            let mut with_images =
                self.skipped.iter().filter(|skipped| !matches!(skipped, Skipped::Captions(..)));
            return Err(match with_images.next() {
                Some(skipped) => DataError::OnlySkipped { path, reason: skipped.to_string() },
                None => DataError::Empty(path),
            });
        };
        let samples = self.examples.iter().map(|example| example.repeats);
        if samples.fold(0, usize::saturating_add) > MAX_SAMPLES {
            let image = most.image.clone();
            return Err(DataError::Repeats { folder: path, image, most: MAX_SAMPLES });
        }
        Ok(())
    }
}

impl ListedImage {
    /// Lists the images of `folder` in the order of a run. Images and text files are not opened.
    ///
    /// # Errors
    /// Returns the errors of [`Dataset::read`](crate::Dataset::read) but those of captions.
    pub fn list(folder: &Path) -> Result<Vec<Self>, TrainError> {
        let FolderContents { examples, uncaptioned, .. } =
            FolderContents::read_captions(folder, None, Captions::Listed)?;
        let listed = |example: Example| {
            let is_in_list = !uncaptioned.contains(&example.image);
            Self::new(example, is_in_list)
        };
        Ok(examples.into_iter().map(listed).collect())
    }
}

/// The repeats and the caption in the name of a folder such as `10_sks mug`. More repeats than a number holds
/// are the largest number.
fn repeats_and_caption(name: &str) -> Option<(usize, &str)> {
    let (repeats, caption) = name.split_once('_')?;
    let is_number = !repeats.is_empty() && repeats.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| (repeats.parse().unwrap_or(usize::MAX), caption))
}
