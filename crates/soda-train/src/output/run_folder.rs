//! A run's folder, `runs/<name>/`. The one file of this crate that writes.

use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use image::{ImageError, ImageFormat, RgbImage};

use crate::error::TrainError;

/// The settings of the run, as resolved.
pub(crate) const CONFIG: &str = "config.toml";

/// The adapter.
pub(crate) const ADAPTER: &str = "adapter.safetensors";
/// The last file of a run: a folder that has it is finished.
pub(crate) const REPORT: &str = "report.html";
/// Training pictures, drawn before, drawn after.
pub(crate) const SHEET: &str = "samples.png";
/// Of unrelated prompts: drawn before, drawn after.
pub(crate) const UNRELATED: &str = "unrelated.png";
/// Pictures drawn on the way.
pub(crate) const SAMPLES: &str = "samples";
/// TensorBoard's event files.
pub(crate) const TENSORBOARD: &str = "tensorboard";
/// Checkpoints of a run that goes on.
pub(crate) const CHECKPOINTS: &str = "checkpoints";

/// A folder that belongs to one run, and to one process at a time.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Held while the run goes on; the system lets it go however the process ends.
    _lock: File,
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
                result => {
                    result.map_err(TrainError::io("create", &path))?;
                    Self::lock(path)
                }
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

    /// Takes the folder of a run that was stopped.
    ///
    /// # Errors
    /// No run there, or one that still goes on.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        if !path.join(CONFIG).is_file() {
            return Err(TrainError::NoRun(path.to_owned()));
        }
        Self::lock(path.to_owned())
    }

    fn lock(path: PathBuf) -> Result<Self, TrainError> {
        let file = path.join(".lock");
        let lock = File::create(&file).map_err(TrainError::io("create", &file))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(TrainError::RunBusy(path)),
            Err(TryLockError::Error(source)) => {
                Err(TrainError::Io { action: "lock", path: file, source })
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

    /// Removes a folder in it, if it is there.
    ///
    /// # Errors
    /// What the operating system says.
    pub(crate) fn remove_folder(&self, name: &str) -> Result<(), TrainError> {
        let path = self.file(name);
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(TrainError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
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
    let bytes = png(image).map_err(|error| TrainError::Picture {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    write_file(path, &bytes)
}

/// A picture as the bytes of a PNG file.
pub(crate) fn png(image: &RgbImage) -> Result<Vec<u8>, ImageError> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
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

    #[test]
    fn a_folder_is_open_once() {
        let root = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(root.path(), Some("a"), "mug").unwrap();
        let path = folder.path().to_owned();
        assert!(matches!(RunFolder::open(&path), Err(TrainError::NoRun(_))));
        folder.write(CONFIG, b"").unwrap();
        assert!(matches!(RunFolder::open(&path), Err(TrainError::RunBusy(_))));
        drop(folder);
        assert!(RunFolder::open(&path).is_ok());
    }
}
