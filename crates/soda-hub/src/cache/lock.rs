//! A lock for one file of the cache, which Python's `huggingface_hub` respects as well.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::failure::Failure;

/// How long another process may hold the lock without progress.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// A lock that is held until it is dropped. The file stays, since another process may wait for it.
#[derive(Debug)]
pub(crate) struct Lock {
    /// `None` on a file system without locks.
    _file: Option<File>,
}

impl Lock {
    /// Waits for the lock at `path`, as long as the file at `growing` grows.
    ///
    /// # Errors
    ///
    /// - [`Failure::Locked`] if another process holds the lock and `growing` stays as it is for a minute.
    /// - [`Failure::Io`] if the lock file cannot be made.
    pub(crate) fn acquire(path: &Path, growing: &Path) -> Result<Self, Failure> {
        Self::acquire_within(path, growing, PATIENCE)
    }

    fn acquire_within(path: &Path, growing: &Path, patience: Duration) -> Result<Self, Failure> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Failure::io(folder))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(Failure::io(path))?;
        let length = || std::fs::metadata(growing).map_or(0, |metadata| metadata.len());
        let (mut seen, mut since) = (length(), Instant::now());
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: Some(file) }),
                Err(TryLockError::WouldBlock) => {}
                // Some network file systems have no locks. The digest still guards the file.
                Err(TryLockError::Error(_)) => return Ok(Self { _file: None }),
            }
            if length() != seen {
                (seen, since) = (length(), Instant::now());
            }
            if since.elapsed() > patience {
                return Err(Failure::Locked { path: path.to_owned() });
            }
            std::thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use super::{Failure, Lock};

    #[test]
    fn a_lock_that_is_held_without_progress_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (path, growing) = (dir.path().join("locks/a.lock"), dir.path().join("a.incomplete"));
        let held = Lock::acquire(&path, &growing).unwrap();
        let wait = || Lock::acquire_within(&path, &growing, Duration::from_millis(150));
        assert!(matches!(wait(), Err(Failure::Locked { path: found }) if found == path));
        drop(held);
        wait().unwrap();
    }
}
