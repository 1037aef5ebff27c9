//! Locks between processes.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The time between two attempts to take a lock.
const PAUSE: Duration = Duration::from_millis(20);

/// A lock file that this process holds. The operating system releases it however the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock `path`, a file that is created if it is missing. `None` if another process holds it.
    ///
    /// # Errors
    /// The error of the operating system; an error for a path that is not a regular file. A symbolic link
    /// is not followed, so that a lock never creates or opens a file elsewhere.
    pub fn try_new(path: &Path) -> io::Result<Option<Self>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        no_follow(&mut options);
        let file = match options.open(path) {
            Err(_) if is_other_kind(path) => return Err(not_a_file()),
            file => file?,
        };
        if !file.metadata()?.is_file() {
            return Err(not_a_file());
        }
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Takes the lock `path` and waits up to `patience` for another process to release it. `None` if it does
    /// not.
    ///
    /// # Errors
    /// The errors of [`Lock::try_new`].
    pub fn wait(path: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let started = Instant::now();
        loop {
            if let Some(lock) = Self::try_new(path)? {
                return Ok(Some(lock));
            }
            if started.elapsed() >= patience {
                return Ok(None);
            }
            sleep(PAUSE);
        }
    }
}

/// Whether `path` exists and is a symbolic link, a folder or a device.
fn is_other_kind(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|data| !data.is_file())
}

fn not_a_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file; remove it")
}

/// Refuses symbolic links, and does not wait for the other end of a named pipe.
#[cfg(unix)]
pub(crate) fn no_follow(options: &mut OpenOptions) {
    use std::os::unix::fs::OpenOptionsExt as _;
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
}

#[cfg(not(unix))]
pub(crate) fn no_follow(_: &mut OpenOptions) {}
