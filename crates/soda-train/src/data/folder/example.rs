//! An image of a data folder.

use std::path::PathBuf;

/// A training image and its caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The image file.
    pub image: PathBuf,
    /// The caption, with the identifier.
    pub caption: String,
    /// The number of times that an epoch has the example.
    pub repeats: usize,
}

impl Example {
    /// The name of the image file.
    pub fn name(&self) -> String {
        self.image.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}
