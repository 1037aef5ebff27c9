//! The folders of a data set, and what is not read in them.

use std::fmt;
use std::path::PathBuf;

/// The most files that are looked at to count the pictures of folders that are not read.
pub(super) const MAX_LOOKED_AT: usize = 10_000;

/// A folder whose images are trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFolder {
    /// The folder.
    pub path: PathBuf,
    /// The number of its images.
    pub images: usize,
    /// The repeats in the folder's name, or 1.
    pub repeats: usize,
}

/// A file or a folder in a data folder that is not read, though it seems to have training data.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Skipped {
    /// An image of an unsupported format.
    Format(PathBuf),
    /// A file with captions in an unsupported format.
    Captions(PathBuf),
    /// A folder with 0 repeats in its name, as kohya's trainer skips it, and the number of its images.
    NoRepeats(PathBuf, usize),
    /// A folder without repeats in its name, and the number of its images that no metadata names.
    Unnamed(PathBuf, usize),
}

/// Writes the warning as one sentence with the remedy.
impl fmt::Display for Skipped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let images = |count: &usize| match count {
            1 => "1 picture is".to_owned(),
            MAX_LOOKED_AT.. => "thousands of pictures are".to_owned(),
            count => format!("{count} pictures are"),
        };
        match self {
            Self::Format(path) => write!(
                formatter,
                "{} is passed over: save it as PNG, JPEG, WebP, BMP or TIFF",
                path.display()
            ),
            Self::Captions(path) => write!(
                formatter,
                "{} is not read: write its captions to metadata.jsonl or to .txt files",
                path.display()
            ),
            Self::NoRepeats(path, count) => write!(
                formatter,
                "{}: {} left out, because the name of the folder says 0 repeats",
                path.display(),
                images(count)
            ),
            Self::Unnamed(path, count) => write!(
                formatter,
                "{}: {} not read; name the folder by repeats and caption, such as `3_sks mug`, or name its \
                 pictures in metadata.jsonl",
                path.display(),
                images(count)
            ),
        }
    }
}
