//! Images of a data folder whose captions are not read yet.

use std::path::PathBuf;

use super::example::Example;
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
    pub(super) fn new(example: Example, is_in_list: bool) -> Self {
        let Example { image, caption, repeats } = example;
        Self { image, repeats, caption, is_in_list }
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
