//! The folder of one run, `runs/<name>/`, and the names of the files in it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image::RgbImage;
use soda_files::{Lock, StagedFolder, remove_leftovers};

use crate::error::{RunFolderError, TrainError};
use crate::output::files::{create_folder, write_file, write_png};

/// The name of the lock.
const LOCK: &str = ".lock";
/// The time that a process has to end before its run's folder is removed.
const PATIENCE: Duration = Duration::from_secs(10);

/// The time for which a process that only looks whether a run is busy may hold the lock.
const PROBE: Duration = Duration::from_millis(100);

/// The folder of one run, locked by one process at a time.
///
/// The constants name the files and folders in it, relative to the folder.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Held while the run goes on. The operating system releases it however the process ends.
    _lock: Lock,
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
    /// An image grid of one row: the samples before training.
    pub const BEFORE_GRID: &str = "before.png";
    /// An image grid of one row: the samples after training.
    pub const AFTER_GRID: &str = "after.png";
    /// What the run did and when, JSON Lines, to which it appends.
    pub const EVENTS: &str = "events.jsonl";
    /// A file that asks the run to stop, see [`RunFolder::request_stop`].
    pub const STOP: &str = "stop";
    /// A file that asks the run for samples now, see [`RunFolder::request_samples`].
    pub const SAMPLE: &str = "sample";
    /// A file that asks the run for its adapter now, see [`RunFolder::request_adapter`].
    pub const SAVE: &str = "save";
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

    /// Creates and locks `root/name` with `settings` as its [`RunFolder::CONFIG`]. Without a name it is the
    /// first free `root/<stem>-<number>`.
    ///
    /// The folder appears with its settings or not at all. If two runs ask for one name, one of them gets it.
    /// The name of a folder without settings and without content, which an earlier version could leave, is
    /// free.
    ///
    /// # Errors
    /// Returns [`RunFolderError::Name`] if the name is no plain name, [`RunFolderError::Exists`] if it is
    /// taken, or [`TrainError::Io`] if the folder cannot be created.
    pub fn create(
        root: &Path,
        name: Option<&str>,
        stem: &str,
        settings: &str,
    ) -> Result<Self, TrainError> {
        if let Some(name) = name {
            Self::check_name(name)?;
        }
        // The name of a data folder may have characters that a run's name has not.
        let stem = stem.replace(|c: char| c.is_control() || ['/', '\\'].contains(&c), "_");
        let first = root.join(name.map_or_else(|| format!("{stem}-1"), str::to_owned));
        let staged = StagedFolder::new(&first).map_err(TrainError::io("create", &first))?;
        let named = |error: TrainError| error.named(|path| staged.committed(path));
        write_file(&staged.path().join(Self::CONFIG), settings.as_bytes()).map_err(named)?;
        // The run is locked before it has its name. Windows renames no folder with an open file in it.
        let mut locked = match cfg!(windows) {
            true => None,
            false => Some(Self::lock(staged.path().to_owned()).map_err(named)?),
        };
        let mut number = 1;
        loop {
            let path = match name {
                Some(_) => first.clone(),
                None => root.join(format!("{stem}-{number}")),
            };
            remove_if_empty(&path);
            match staged.commit_to(&path) {
                Ok(()) => {
                    return match locked.take() {
                        Some(folder) => Ok(Self { path, ..folder }),
                        None => Self::lock(path),
                    };
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    if name.is_some() {
                        return Err(RunFolderError::Exists(path).into());
                    }
                    number += 1;
                }
                Err(error) => return Err(TrainError::io("create", &path)(error)),
            }
        }
    }

    /// Locks the folder of a run that was stopped, and removes what a killed process left half written.
    ///
    /// # Errors
    /// Returns [`RunFolderError::NoRun`] if there is no run, or [`RunFolderError::Busy`] if another process
    /// works on it.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        if !path.join(Self::CONFIG).is_file() {
            return Err(RunFolderError::NoRun(path.to_owned()).into());
        }
        let folder = Self::lock(path.to_owned())?;
        remove_leftovers(path);
        // A request that came after the end of the run is void.
        for request in [Self::STOP, Self::SAMPLE, Self::SAVE] {
            folder.takes_request(request);
        }
        for name in [Self::SNAPSHOTS, Self::CLASS_IMAGES, Self::CHECKPOINTS] {
            remove_leftovers(&folder.file(name));
        }
        Ok(folder)
    }

    /// Removes the folder of a run at `path` with its content, if it exists. A process that works on it has
    /// some seconds to end.
    ///
    /// # Errors
    /// Returns [`RunFolderError::Busy`] if another process goes on working on it, or [`TrainError::Io`] if
    /// something cannot be removed.
    pub fn remove(path: &Path) -> Result<(), TrainError> {
        if !path.is_dir() {
            return Ok(());
        }
        let file = path.join(LOCK);
        let lock = Lock::wait(&file, PATIENCE).map_err(TrainError::io("lock", &file))?;
        let Some(_lock) = lock else { return Err(RunFolderError::Busy(path.to_owned()).into()) };
        std::fs::remove_dir_all(path).map_err(TrainError::io("remove", path))
    }

    /// Asks the process that works on the run at `path` to stop after its current step, with a checkpoint.
    ///
    /// # Errors
    /// Returns [`RunFolderError::NoRun`] if there is no run, or [`TrainError::Io`] if the request cannot be
    /// written.
    pub fn request_stop(path: &Path) -> Result<(), TrainError> {
        Self::request(path, Self::STOP)
    }

    /// Asks the process that works on the run at `path` to draw samples after its current step, as in the
    /// interval `samples.every`.
    ///
    /// # Errors
    /// As [`RunFolder::request_stop`].
    pub fn request_samples(path: &Path) -> Result<(), TrainError> {
        Self::request(path, Self::SAMPLE)
    }

    /// Asks the process that works on the run at `path` to write a checkpoint and the adapter after its
    /// current step.
    ///
    /// # Errors
    /// As [`RunFolder::request_stop`].
    pub fn request_adapter(path: &Path) -> Result<(), TrainError> {
        Self::request(path, Self::SAVE)
    }

    fn request(path: &Path, name: &str) -> Result<(), TrainError> {
        if !path.join(Self::CONFIG).is_file() {
            return Err(RunFolderError::NoRun(path.to_owned()).into());
        }
        write_file(&path.join(name), b"")
    }

    /// Whether the file `name` asks for something. The request is taken away.
    pub(crate) fn takes_request(&self, name: &str) -> bool {
        let path = self.file(name);
        // A request that cannot be removed would stop every later run as well.
        path.is_file() && std::fs::remove_file(&path).is_ok()
    }

    /// Whether a process works on the run at `path`.
    pub fn is_busy(path: &Path) -> bool {
        let file = path.join(LOCK);
        file.is_file() && matches!(Lock::try_new(&file), Ok(None))
    }

    fn lock(path: PathBuf) -> Result<Self, TrainError> {
        let file = path.join(LOCK);
        match Lock::wait(&file, PROBE).map_err(TrainError::io("lock", &file))? {
            Some(lock) => Ok(Self { path, _lock: lock }),
            None => Err(RunFolderError::Busy(path).into()),
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

/// Removes a folder that has no content but a lock that no process holds.
fn remove_if_empty(path: &Path) {
    let names =
        |entries: std::fs::ReadDir| entries.flatten().all(|entry| entry.file_name() == LOCK);
    if !std::fs::read_dir(path).is_ok_and(names) {
        return;
    }
    // A folder that another process works on, or that cannot be removed, keeps its name.
    let lock = path.join(LOCK);
    if lock.is_file() && matches!(Lock::try_new(&lock), Ok(Some(_))) {
        let _ = std::fs::remove_file(&lock);
    }
    let _ = std::fs::remove_dir(path);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    fn create(root: &Path, name: Option<&str>) -> Result<RunFolder, TrainError> {
        RunFolder::create(root, name, "mug", "seed = 1\n")
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn a_name_is_created_once_and_numbers_increase() {
        let root = tempfile::tempdir().unwrap();
        let create = |name| create(root.path(), name);
        assert!(create(Some("a")).is_ok());
        assert!(matches!(create(Some("a")), Err(TrainError::RunFolder(RunFolderError::Exists(_)))));
        assert!(create(None).unwrap().path().ends_with("mug-1"));
        assert!(create(None).unwrap().path().ends_with("mug-2"));
        assert_eq!(names(root.path()), ["a", "mug-1", "mug-2"]);
        assert_eq!(names(&root.path().join("mug-2")), [".lock", RunFolder::CONFIG]);
    }

    /// A run that ended before it had settings could be neither resumed nor begun again under its name.
    #[test]
    fn the_name_of_a_folder_without_settings_is_free() {
        let root = tempfile::tempdir().unwrap();
        for (name, file) in [("empty", None), ("dead", Some(LOCK)), ("full", Some("photo.png"))] {
            std::fs::create_dir(root.path().join(name)).unwrap();
            if let Some(file) = file {
                std::fs::write(root.path().join(name).join(file), "").unwrap();
            }
        }
        assert!(create(root.path(), Some("empty")).is_ok());
        assert!(create(root.path(), Some("dead")).is_ok());
        assert!(create(root.path(), Some("full")).is_err());
        let path = root.path().join("locked");
        std::fs::create_dir(&path).unwrap();
        let _lock = Lock::try_new(&path.join(LOCK)).unwrap().unwrap();
        assert!(create(root.path(), Some("locked")).is_err());
        assert_eq!(names(root.path()), ["dead", "empty", "full", "locked"]);
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        let root = tempfile::tempdir().unwrap();
        let runs = root.path().join("runs");
        for name in ["", " ", ".", "..", "a/b", "a\\b", "/a", "../a", "a\nb", "\u{1b}[2J"] {
            let error = RunFolder::create(&runs, Some(name), "mug", "").unwrap_err();
            assert!(matches!(error, TrainError::RunFolder(RunFolderError::Name(_))), "{name:?}");
            assert!(!error.to_string().contains(char::is_control), "{error}");
        }
        assert!(!runs.exists(), "the folder of the runs was created for a wrong name");
        for name in ["a..b", "...", ".a", "é 1:2"] {
            RunFolder::create(&runs, Some(name), "mug", "").unwrap();
        }
    }

    #[test]
    fn a_folder_is_locked_by_one_process() {
        let root = tempfile::tempdir().unwrap();
        let folder = create(root.path(), Some("a")).unwrap();
        let path = folder.path().to_owned();
        let open = || RunFolder::open(&path);
        assert!(matches!(open(), Err(TrainError::RunFolder(RunFolderError::Busy(_)))));
        drop(folder);
        assert!(open().is_ok());
        std::fs::remove_file(path.join(RunFolder::CONFIG)).unwrap();
        assert!(matches!(open(), Err(TrainError::RunFolder(RunFolderError::NoRun(_)))));
    }

    #[test]
    fn a_request_is_taken_once_and_void_for_a_resumed_run() {
        let root = tempfile::tempdir().unwrap();
        let folder = create(root.path(), Some("a")).unwrap();
        let path = folder.path().to_owned();
        type Request = fn(&Path) -> Result<(), TrainError>;
        let requests: [(&str, Request); 3] = [
            (RunFolder::STOP, RunFolder::request_stop),
            (RunFolder::SAMPLE, RunFolder::request_samples),
            (RunFolder::SAVE, RunFolder::request_adapter),
        ];
        for (name, request) in requests {
            assert!(!folder.takes_request(name) && RunFolder::is_busy(&path));
            request(&path).unwrap();
            assert_eq!([folder.takes_request(name), folder.takes_request(name)], [true, false]);
            request(&path).unwrap();
        }
        drop(folder);
        assert!(!RunFolder::is_busy(&path));
        let folder = RunFolder::open(&path).unwrap();
        assert!(requests.iter().all(|(name, _)| !folder.takes_request(name)));
        assert!(RunFolder::request_stop(&root.path().join("b")).is_err());
        assert!(!RunFolder::is_busy(&root.path().join("b")));
    }

    #[test]
    #[cfg(unix)]
    fn a_resumed_run_removes_what_a_killed_process_left() {
        let root = tempfile::tempdir().unwrap();
        let path = create(root.path(), Some("a")).unwrap().path().to_owned();
        let half = ".soda-0123456789abcdef.tmp";
        std::fs::create_dir(path.join(RunFolder::CHECKPOINTS)).unwrap();
        for name in [half.to_owned(), format!("{}/{half}", RunFolder::CHECKPOINTS)] {
            std::fs::write(path.join(name), "half").unwrap();
        }
        drop(RunFolder::open(&path).unwrap());
        assert_eq!(names(&path), [".lock", "checkpoints", RunFolder::CONFIG]);
        assert!(names(&path.join(RunFolder::CHECKPOINTS)).is_empty());
    }

    #[test]
    fn a_folder_is_removed_when_no_process_works_on_it() {
        let root = tempfile::tempdir().unwrap();
        let folder = create(root.path(), Some("a")).unwrap();
        let path = folder.path().to_owned();
        let release = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            drop(folder);
        });
        RunFolder::remove(&path).unwrap();
        release.join().unwrap();
        RunFolder::remove(&path).unwrap();
        assert!(!path.exists());
    }
}
