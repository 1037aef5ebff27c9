//! Where the files of a repository are in the cache, and the links and refs between them.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::lock::Lock;
use crate::failure::Failure;
use crate::names::is_commit;

/// The longest content of a ref that is read, in bytes.
const MAX_REF: u64 = 256;

/// The part of the cache that belongs to one repository.
pub(crate) struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// Returns the place of the repository `owner/name`.
    pub(crate) fn new(cache_dir: &Path, name: &str) -> Self {
        let folder = format!("models--{}", name.replace('/', "--"));
        Self { locks: cache_dir.join(".locks").join(&folder), folder: cache_dir.join(folder) }
    }

    /// The folder with the files of one commit.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The place of a content.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// The place of a content that is not whole yet.
    pub(crate) fn partial(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Waits for the lock of a content, and makes the folder of contents.
    ///
    /// # Errors
    ///
    /// As [`Lock::acquire`].
    pub(crate) fn lock(&self, etag: &str) -> Result<Lock, Failure> {
        let blobs = self.folder.join("blobs");
        std::fs::create_dir_all(&blobs).map_err(Failure::io(blobs))?;
        Lock::acquire(&self.locks.join(format!("{etag}.lock")), &self.partial(etag))
    }

    /// The commit of a revision by the last download. A revision may be a commit itself.
    pub(crate) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) && self.snapshot(revision).is_dir() {
            return Some(revision.to_owned());
        }
        let path = self.folder.join("refs").join(revision);
        let file = std::fs::File::open(Some(path).filter(|path| path.is_file())?).ok()?;
        let mut text = String::new();
        file.take(MAX_REF).read_to_string(&mut text).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Makes `revision` a name of `commit`.
    ///
    /// # Errors
    ///
    /// [`Failure::Io`] if the ref cannot be written.
    pub(crate) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), Failure> {
        // A commit needs no ref to be found.
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let refs = self.folder.join("refs");
        std::fs::create_dir_all(&refs).map_err(Failure::io(&refs))?;
        // Python takes every file in `refs` for a ref, hence the other folder. The lock keeps the temporary
        // name to one process, and the next process overwrites it after a crash.
        let temporary = self.locks.join("ref.tmp");
        let _lock = Lock::acquire(&self.locks.join("ref.lock"), &temporary)?;
        std::fs::write(&temporary, commit).map_err(Failure::io(&temporary))?;
        let path = refs.join(revision);
        std::fs::rename(&temporary, &path).map_err(Failure::io(path))
    }

    /// Makes the file `name` of a snapshot a link to a blob, or the blob itself where links cannot be made.
    ///
    /// # Errors
    ///
    /// [`Failure::Io`] if neither can be made, or if the disk is full.
    pub(crate) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<PathBuf, Failure> {
        let path = self.snapshot(commit).join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Failure::io(folder))?;
        }
        remove_if_present(&path)?;
        // A relative target stays right when the whole cache moves.
        let up = "../".repeat(2 + name.matches('/').count());
        match symlink(&Path::new(&up).join("blobs").join(etag), &path) {
            Ok(()) => Ok(path),
            // Another process made the link in the meantime.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(path),
            // The blob stays where it is as long as links can be made: other snapshots may lead to it.
            Err(error) if lacks_links(&error) => {
                std::fs::rename(self.blob(etag), &path).map_err(Failure::io(&path))?;
                Ok(path)
            }
            Err(error) => Err(Failure::io(&path)(error)),
        }
    }

    /// Removes a blob that is damaged.
    ///
    /// # Errors
    ///
    /// [`Failure::Io`] if the blob is there and cannot be removed.
    pub(crate) fn remove_blob(&self, etag: &str) -> Result<(), Failure> {
        remove_if_present(&self.blob(etag))
    }
}

fn remove_if_present(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::io(path)(error)),
        _ => Ok(()),
    }
}

/// Whether the error of a link says that the file system, or the user, can make none at all. A full disk says
/// something else.
#[cfg(unix)]
fn lacks_links(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied)
}

/// Windows has several errors for users without the privilege.
#[cfg(not(unix))]
fn lacks_links(error: &std::io::Error) -> bool {
    error.kind() != ErrorKind::StorageFull
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(windows)]
fn symlink(target: &Path, path: &Path) -> std::io::Result<()> {
    // Windows follows backslashes only.
    let target: PathBuf = target.components().collect();
    std::os::windows::fs::symlink_file(target, path)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::RepoCache;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn a_link_leads_to_its_blob() {
        let dir = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(dir.path(), "owner/name");
        let lock = cache.lock("ab").unwrap();
        std::fs::write(cache.blob("ab"), "bytes").unwrap();
        for name in ["a.json", "unet/a.json"] {
            // The second time replaces the link.
            for _ in 0..2 {
                let path = cache.link(COMMIT, name, "ab").unwrap();
                assert_eq!(std::fs::read(path).unwrap(), b"bytes");
            }
        }
        drop(lock);
        let moved = dir.path().join("models--owner--name/snapshots").join(COMMIT);
        assert_eq!(cache.snapshot(COMMIT), moved);
    }

    #[test]
    fn a_ref_holds_a_commit() {
        let dir = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(dir.path(), "owner/name");
        assert_eq!(cache.commit_of("main"), None);
        cache.write_ref("main", COMMIT).unwrap();
        assert_eq!(cache.commit_of("main").as_deref(), Some(COMMIT));
        assert_eq!(cache.commit_of(COMMIT), None);
        std::fs::create_dir_all(cache.snapshot(COMMIT)).unwrap();
        assert_eq!(cache.commit_of(COMMIT).as_deref(), Some(COMMIT));
        let path = dir.path().join("models--owner--name/refs/main");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), COMMIT);
        std::fs::write(&path, "../../elsewhere").unwrap();
        assert_eq!(cache.commit_of("main"), None);
    }
}
