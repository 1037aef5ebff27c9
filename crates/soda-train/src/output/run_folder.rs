//! The folder of one run, `runs/<name>/`, and the names of the files in it.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use image::RgbImage;

use crate::error::{RunFolderError, TrainError};
use crate::output::files::{create_folder, write_file, write_png};

/// The folder of one run, locked by one process at a time.
///
/// The constants name the files and folders in it, relative to the folder.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Held while the run goes on. The operating system releases it however the process ends.
    _lock: File,
}

impl RunFolder {
    /// The resolved settings of the run, TOML.
    pub const CONFIG: &str = "config.toml";
    /// The trained adapter.
    pub const ADAPTER: &str = "adapter.safetensors";
    /// The report, which is written last: a folder that has it belongs to a finished run.
    pub const REPORT: &str = "report.html";
    /// The scores before and after training and of the ground truth ([`RunScores`](crate::RunScores)), JSON.
    pub const SCORES: &str = "scores.json";
    /// Loss, gradient norm and learning rates of every step, CSV.
    pub const LOSS_CSV: &str = "loss.csv";
    /// The loss as a line chart, SVG.
    pub const LOSS_CHART: &str = "loss.svg";
    /// An image grid of three rows: training images, samples before training, samples after training.
    pub const SAMPLES_GRID: &str = "samples.png";
    /// An image grid of the unrelated prompts in two rows: before and after training.
    pub const UNRELATED_GRID: &str = "unrelated.png";
    /// The folder of the image grids and scores that are sampled during training.
    pub const SNAPSHOTS: &str = "samples";
    /// The folder of the class images that the base model generates for prior preservation.
    pub const CLASS_IMAGES: &str = "class";
    /// The folder of TensorBoard's event files.
    pub const TENSORBOARD: &str = "tensorboard";
    /// The folder of the checkpoints of an unfinished run.
    pub const CHECKPOINTS: &str = "checkpoints";

    /// Checks that `name` is the plain name of a folder, which leads nowhere else.
    ///
    /// # Errors
    /// Returns [`RunFolderError::Name`] for an empty name, `.`, `..`, or a name with `/`, `\` or a control
    /// character.
    pub fn check_name(name: &str) -> Result<(), RunFolderError> {
        let dots = ["", ".", ".."].contains(&name.trim());
        if dots || name.contains(['/', '\\']) || name.contains(char::is_control) {
            return Err(RunFolderError::Name(name.to_owned()));
        }
        Ok(())
    }

    /// Creates and locks `root/name`, or without a name the first free `root/<stem>-<number>`.
    ///
    /// Creating a folder is atomic: if two runs ask for one name, one of them gets it.
    ///
    /// # Errors
    /// Returns [`RunFolderError::Name`] if the name is no plain name, [`RunFolderError::Exists`] if it is taken,
    /// or [`TrainError::Io`] if the folder cannot be created.
    pub fn create(root: &Path, name: Option<&str>, stem: &str) -> Result<Self, TrainError> {
        if let Some(name) = name {
            Self::check_name(name)?;
        }
        create_folder(root)?;
        if let Some(name) = name {
            let path = root.join(name);
            return match std::fs::create_dir(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    Err(RunFolderError::Exists(path).into())
                }
                result => {
                    result.map_err(TrainError::io("create", &path))?;
                    Self::lock(path)
                }
            };
        }
        // The name of a data folder may have characters that a run's name has not.
        let stem = stem.replace(|c: char| c.is_control() || ['/', '\\'].contains(&c), "_");
        let mut number = 1;
        loop {
            match Self::create(root, Some(&format!("{stem}-{number}")), &stem) {
                Err(TrainError::RunFolder(RunFolderError::Exists(_))) => number += 1,
                result => return result,
            }
        }
    }

    /// Locks the folder of a run that was stopped.
    ///
    /// # Errors
    /// Returns [`RunFolderError::NoRun`] if there is no run, or [`RunFolderError::Busy`] if another process
    /// works on it.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        if !path.join(Self::CONFIG).is_file() {
            return Err(RunFolderError::NoRun(path.to_owned()).into());
        }
        Self::lock(path.to_owned())
    }

    fn lock(path: PathBuf) -> Result<Self, TrainError> {
        let file = path.join(".lock");
        let lock = File::create(&file).map_err(TrainError::io("create", &file))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(RunFolderError::Busy(path).into()),
            Err(TryLockError::Error(source)) => {
                Err(TrainError::Io { action: "lock", path: file, source })
            }
        }
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the file `name` in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes the file `name` whole or not at all.
    ///
    /// # Errors
    /// Returns [`TrainError::Io`] if the file cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TrainError> {
        write_file(&self.file(name), bytes)
    }

    /// Writes `image` to the file `name` as PNG, whole or not at all.
    ///
    /// # Errors
    /// Returns [`TrainError::Io`] if the file cannot be written, or the encoder's error.
    pub fn write_png(&self, name: &str, image: &RgbImage) -> Result<(), TrainError> {
        write_png(&self.file(name), image)
    }

    /// Creates the folder `name` inside the run's folder, unless it exists.
    pub(crate) fn create_subfolder(&self, name: &str) -> Result<(), TrainError> {
        create_folder(&self.file(name))
    }

    /// Removes the folder `name` and its content, if it exists.
    pub(crate) fn remove_subfolder(&self, name: &str) -> Result<(), TrainError> {
        let path = self.file(name);
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(TrainError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn a_name_is_created_once_and_numbers_increase() {
        let root = tempfile::tempdir().unwrap();
        let create = |name| RunFolder::create(root.path(), name, "mug");
        assert!(create(Some("a")).is_ok());
        assert!(matches!(create(Some("a")), Err(TrainError::RunFolder(RunFolderError::Exists(_)))));
        assert!(create(None).unwrap().path().ends_with("mug-1"));
        assert!(create(None).unwrap().path().ends_with("mug-2"));
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        let root = tempfile::tempdir().unwrap();
        let runs = root.path().join("runs");
        for name in ["", " ", ".", "..", "a/b", "a\\b", "/a", "../a", "a\nb", "\u{1b}[2J"] {
            let error = RunFolder::create(&runs, Some(name), "mug").unwrap_err();
            assert!(matches!(error, TrainError::RunFolder(RunFolderError::Name(_))), "{name:?}");
            assert!(!error.to_string().contains(char::is_control), "{error}");
        }
        assert!(!runs.exists(), "the folder of the runs was created for a wrong name");
        for name in ["a..b", "...", ".a", "é 1:2"] {
            RunFolder::create(&runs, Some(name), "mug").unwrap();
        }
    }

    #[test]
    fn a_folder_is_locked_by_one_process() {
        let root = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(root.path(), Some("a"), "mug").unwrap();
        let path = folder.path().to_owned();
        assert!(matches!(
            RunFolder::open(&path),
            Err(TrainError::RunFolder(RunFolderError::NoRun(_)))
        ));
        folder.write(RunFolder::CONFIG, b"").unwrap();
        assert!(matches!(
            RunFolder::open(&path),
            Err(TrainError::RunFolder(RunFolderError::Busy(_)))
        ));
        drop(folder);
        assert!(RunFolder::open(&path).is_ok());
    }
}
