//! Errors of a run's folder.

use std::path::PathBuf;

/// A run's folder that cannot be created or resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunFolderError {
    /// A folder of this name exists.
    #[error("{path} already holds a run; give another `--name`, or remove it", path = .0.display())]
    Exists(PathBuf),
    /// A name that is no plain name of a folder.
    #[error("`{}` cannot name a run: give a name without `/`, `\\` and control characters, other than `.` and `..`", .0.escape_debug())]
    Name(String),
    /// The folder holds no run.
    #[error("{path} holds no run: there is no config.toml in it", path = .0.display())]
    NoRun(PathBuf),
    /// Another process holds the lock of the folder.
    #[error("another process is working on {path}; wait for it, or stop it", path = .0.display())]
    Busy(PathBuf),
    /// The run is finished.
    #[error("{path} is finished; to train on, start a new run with more steps", path = .0.display())]
    Finished(PathBuf),
}
