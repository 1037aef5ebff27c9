//! Images of a data folder whose captions are not read yet.

use std::path::{Path, PathBuf};

use super::{Captions, FolderContents};
use crate::data::metadata::read_caption_file;
use crate::error::TrainError;

/// An image of a data folder, whose caption may lie in the text file beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedImage {
    /// The image file.
    pub image: PathBuf,
    /// The number of times that an epoch has the image.
    pub repeats: usize,
    /// The caption of the list, or else that of images without a text file.
    caption: String,
    /// Whether the list has the caption.
    is_in_list: bool,
}

impl ListedImage {
    /// Lists the images of `folder` in the order of a run. Images and text files are not opened.
    ///
    /// # Errors
    /// Returns the errors of [`Dataset::read`](crate::Dataset::read) but those of captions.
    pub fn list(folder: &Path) -> Result<Vec<Self>, TrainError> {
        let FolderContents { examples, uncaptioned, .. } =
            FolderContents::read_captions(folder, None, Captions::Listed)?;
        let listed = examples.into_iter().map(|example| Self {
            is_in_list: !uncaptioned.contains(&example.image),
            image: example.image,
            repeats: example.repeats,
            caption: example.caption,
        });
        Ok(listed.collect())
    }

    /// The caption, which is empty where the image has none. The text file is read.
    ///
    /// # Errors
    /// Returns an error for a text file that is neither UTF-8 nor UTF-16, or that cannot be read.
    pub fn caption(&self) -> Result<String, TrainError> {
        let in_file = if self.is_in_list { None } else { read_caption_file(&self.image)? };
        Ok(in_file.unwrap_or_else(|| self.caption.clone()))
    }
}
