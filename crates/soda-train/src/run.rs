//! A run's folder, `runs/<name>/`. The one file of this crate that writes.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use image::{ImageFormat, RgbImage};

use crate::error::TrainError;

/// A folder that belongs to one run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Takes `root/name`. With no name, the first free `root/<stem>-<number>`.
    ///
    /// Creating a folder is atomic: of two runs that ask for one name, one gets it.
    ///
    /// # Errors
    /// The name is taken, or the folder cannot be created.
    pub fn create(root: &Path, name: Option<&str>, stem: &str) -> Result<Self, TrainError> {
        std::fs::create_dir_all(root).map_err(TrainError::io("create", root))?;
        if let Some(name) = name {
            let path = root.join(name);
            return match std::fs::create_dir(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    Err(TrainError::RunExists(path))
                }
                result => result.map_err(TrainError::io("create", &path)).map(|()| Self { path }),
            };
        }
        let mut number = 1;
        loop {
            match Self::create(root, Some(&format!("{stem}-{number}")), stem) {
                Err(TrainError::RunExists(_)) => number += 1,
                result => return result,
            }
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of one of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file whole or not at all.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TrainError> {
        write_file(&self.file(name), bytes)
    }

    /// Writes a picture as PNG.
    ///
    /// # Errors
    /// What the encoder or the operating system says.
    pub fn write_png(&self, name: &str, image: &RgbImage) -> Result<(), TrainError> {
        write_png(&self.file(name), image)
    }
}

/// Writes a file whole or not at all: a temporary file beside it, synced, then renamed.
///
/// # Errors
/// What the operating system says.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(TrainError::io("write", path))
}

/// Writes a picture as PNG, whole or not at all.
///
/// # Errors
/// What the encoder or the operating system says.
pub fn write_png(path: &Path, image: &RgbImage) -> Result<(), TrainError> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).map_err(|error| TrainError::Picture {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    write_file(path, bytes.get_ref())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn a_name_is_given_once_and_numbers_count_on() {
        let root = tempfile::tempdir().unwrap();
        let create = |name| RunFolder::create(root.path(), name, "mug");
        assert!(create(Some("a")).is_ok());
        assert!(matches!(create(Some("a")), Err(TrainError::RunExists(_))));
        assert!(create(None).unwrap().path().ends_with("mug-1"));
        assert!(create(None).unwrap().path().ends_with("mug-2"));
    }
}
