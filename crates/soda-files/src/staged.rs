//! Files and folders that are written beside their target and then renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::leftovers::{remove_leftovers_once, staged_name};

/// Writes `bytes` to `path` whole or not at all: to a file in the same folder, synchronised, then renamed.
///
/// # Errors
/// The error of the operating system, such as for a folder that is missing.
///
/// ```
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("notes.txt");
/// soda_files::write(&path, b"done")?;
/// assert_eq!(std::fs::read(&path)?, b"done");
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut staged = StagedFile::new(path)?;
    staged.file().write_all(bytes)?;
    staged.commit()
}

/// A file that is not yet at its target. It is removed unless it is committed.
#[derive(Debug)]
pub struct StagedFile {
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl StagedFile {
    /// Creates an empty file in the folder of `target`. Removes what killed processes left there.
    ///
    /// # Errors
    /// The error of the operating system, such as for a folder that is missing.
    pub fn new(target: &Path) -> io::Result<Self> {
        let create =
            |path: &Path| OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let (path, file) = stage(target, create, |path| fs::remove_file(path))?;
        Ok(Self { file, path, target: target.to_owned() })
    }

    /// The open file.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// The path of the file until it is committed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Synchronises the file and renames it to its target. A file that is there is replaced.
    ///
    /// # Errors
    /// The error of the operating system. The target is then as it was.
    pub fn commit(self) -> io::Result<()> {
        // Before the rename: otherwise a crash of the system could leave an empty file at the target.
        self.file.sync_all()?;
        fs::rename(&self.path, &self.target)
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        // After a rename there is nothing at the path. A file that cannot be removed is a leftover.
        let _ = fs::remove_file(&self.path);
    }
}

/// A folder that is not yet at its target. It is removed with its content unless it is committed.
#[derive(Debug)]
pub struct StagedFolder {
    path: PathBuf,
    target: PathBuf,
    /// Open for the lock that tells other processes that this one goes on.
    _lock: Option<File>,
}

impl StagedFolder {
    /// Creates an empty folder beside `target`, whose missing parents are created. Removes what killed
    /// processes left there.
    ///
    /// # Errors
    /// The error of the operating system.
    pub fn new(target: &Path) -> io::Result<Self> {
        fs::create_dir_all(parent(target))?;
        let create = |path: &Path| {
            fs::create_dir(path)?;
            open_folder(path)
        };
        let (path, lock) = stage(target, create, |path| fs::remove_dir(path))?;
        Ok(Self { path, target: target.to_owned(), _lock: lock })
    }

    /// The path of the folder until it is committed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path that `path`, of something in the folder, has once the folder is committed.
    ///
    /// Messages name it, since nobody knows the path before.
    ///
    /// ```
    /// let folder = tempfile::tempdir()?;
    /// let staged = soda_files::StagedFolder::new(&folder.path().join("model"))?;
    /// let path = staged.path().join("config.json");
    /// assert_eq!(staged.committed(&path), folder.path().join("model/config.json"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn committed(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.path)
            .map_or_else(|_| path.to_owned(), |rest| self.target.join(rest))
    }

    /// Renames the folder to its target.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if the target is a file or a folder with content. Of two processes
    /// that commit to one target, one gets it. Otherwise the error of the operating system.
    pub fn commit(self) -> io::Result<()> {
        let target = self.target.clone();
        self.commit_to(&target)
    }

    /// Renames the folder to `target`, a path in the same folder as the one it was staged for.
    ///
    /// # Errors
    /// Those of [`StagedFolder::commit`].
    pub fn commit_to(&self, target: &Path) -> io::Result<()> {
        let exists = || io::Error::from(io::ErrorKind::AlreadyExists);
        if target.symlink_metadata().is_ok_and(|data| !data.is_dir()) {
            return Err(exists());
        }
        // A rename takes the place of an empty folder only. Some systems refuse that as well.
        match fs::rename(&self.path, target) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Err(exists()),
            Err(_) if fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_some()) => {
                Err(exists())
            }
            result => result,
        }
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        // After a rename there is nothing at the path. A folder that cannot be removed is a leftover.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// How often a new name is tried before an error counts.
const MOST_ATTEMPTS: usize = 100;

/// The folder that holds `target`.
fn parent(target: &Path) -> &Path {
    target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates something with a new name beside `target` and locks it.
fn stage<T: Handle>(
    target: &Path,
    create: impl Fn(&Path) -> io::Result<T>,
    remove: impl Fn(&Path) -> io::Result<()>,
) -> io::Result<(PathBuf, T)> {
    let folder = parent(target);
    remove_leftovers_once(folder);
    let mut refusal = io::Error::from(io::ErrorKind::AlreadyExists);
    for _ in 0..MOST_ATTEMPTS {
        let path = folder.join(staged_name());
        match create(&path) {
            Ok(handle) if handle.is_held(&path) => return Ok((path, handle)),
            // Another process took it for a leftover before it was locked.
            Ok(_) => {
                let _ = remove(&path);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => refusal = error,
            // The folder vanished between its creation and its opening, for the same reason. It says so too
            // where nothing can be created: in `/proc`, and in a current folder that was removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound && folder.is_dir() => {
                refusal = error
            }
            Err(error) => return Err(error),
        }
    }
    Err(refusal)
}

/// What keeps a staged file or folder locked.
trait Handle {
    /// Locks what was created at `path`. False if another process has removed it.
    fn is_held(&self, path: &Path) -> bool;
}

#[cfg(unix)]
impl Handle for File {
    fn is_held(&self, path: &Path) -> bool {
        match self.try_lock() {
            Err(std::fs::TryLockError::WouldBlock) => false,
            // Without locks on this file system, other processes cannot lock it either and keep it.
            Ok(()) | Err(std::fs::TryLockError::Error(_)) => path.symlink_metadata().is_ok(),
        }
    }
}

/// Elsewhere a lock would keep this process itself from writing by the path.
#[cfg(not(unix))]
impl Handle for File {
    fn is_held(&self, _: &Path) -> bool {
        true
    }
}

impl Handle for Option<File> {
    fn is_held(&self, path: &Path) -> bool {
        self.as_ref().is_none_or(|file| file.is_held(path))
    }
}

/// Opens a folder for its lock, where folders have locks.
#[cfg(unix)]
fn open_folder(path: &Path) -> io::Result<Option<File>> {
    File::open(path).map(Some)
}

#[cfg(not(unix))]
fn open_folder(_: &Path) -> io::Result<Option<File>> {
    Ok(None)
}
