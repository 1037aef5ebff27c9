//! A file on its way into the cache: `blobs/ETAG.incomplete`, which gets its name when it is whole.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::digest::{Digest, Hasher};
use crate::failure::Failure;

/// The first part of a file, and the digest of that part.
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
    digest: Digest,
    size: Option<u64>,
    hasher: Hasher,
    length: u64,
    resumed: bool,
}

impl Partial {
    /// Opens the partial file at `path`, or creates it. The caller holds the lock of the blob.
    ///
    /// # Errors
    ///
    /// [`Failure::Io`] if the file cannot be read or written.
    pub(crate) fn open(path: PathBuf, digest: Digest, size: Option<u64>) -> Result<Self, Failure> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(Failure::io(&path))?;
        let hasher = digest.hasher(size);
        let mut partial = Self { path, file, digest, size, hasher, length: 0, resumed: false };
        partial.read_back()?;
        Ok(partial)
    }

    /// The number of bytes so far.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Whether some of the bytes are from an earlier transfer.
    pub(crate) fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Hashes what an earlier transfer left.
    fn read_back(&mut self) -> Result<(), Failure> {
        let length = self.file.metadata().map_err(Failure::io(&self.path))?.len();
        if self.size.is_some_and(|size| length > size) {
            return self.restart();
        }
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = self.file.read(&mut buffer).map_err(Failure::io(&self.path))?;
            if count == 0 {
                break;
            }
            self.hasher.update(&buffer[..count]);
            self.length += count as u64;
        }
        self.resumed = self.length > 0;
        Ok(())
    }

    /// Empties the file.
    pub(crate) fn restart(&mut self) -> Result<(), Failure> {
        self.file.set_len(0).map_err(Failure::io(&self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(Failure::io(&self.path))?;
        self.hasher = self.digest.hasher(self.size);
        (self.length, self.resumed) = (0, false);
        Ok(())
    }

    /// Appends bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(Failure::io(&self.path))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Gives the file its name if it is whole and its digest is right; removes it otherwise.
    ///
    /// # Errors
    ///
    /// - [`Failure::Mismatch`] for another length or digest. `name` is for the message.
    /// - [`Failure::Io`] if the file cannot be written or renamed.
    pub(crate) fn finish(self, name: &str, blob: &Path) -> Result<(), Failure> {
        let length = match self.size.filter(|size| *size != self.length) {
            Some(size) => Err(format!("it has {} bytes instead of {size}", self.length)),
            None => Ok(()),
        };
        if let Err(reason) = length.and_then(|()| self.hasher.finish()) {
            std::fs::remove_file(&self.path).map_err(Failure::io(&self.path))?;
            let (file, resumed) = (name.to_owned(), self.resumed);
            return Err(Failure::Mismatch { file, reason, resumed });
        }
        // The bytes are on the disk before the name is, so that a power cut leaves no hollow file.
        self.file.sync_all().map_err(Failure::io(&self.path))?;
        drop(self.file);
        std::fs::rename(&self.path, blob).map_err(Failure::io(blob))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{Digest, Failure, Partial};

    const NAME: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    #[test]
    fn a_file_gets_its_name_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (path, blob) = (dir.path().join("a.incomplete"), dir.path().join(NAME));
        let open = || Partial::open(path.clone(), Digest::of_name(NAME), Some(6)).unwrap();
        open().write(b"hel").unwrap();
        let mut partial = open();
        assert!(partial.is_resumed() && partial.length() == 3);
        partial.write(b"lo\n").unwrap();
        partial.finish("a", &blob).unwrap();
        assert_eq!(std::fs::read(&blob).unwrap(), b"hello\n");
        assert!(!path.exists());
    }

    #[test]
    fn wrong_bytes_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, blob) = (dir.path().join("a.incomplete"), dir.path().join(NAME));
        for (earlier, bytes) in [("", "hullo\n"), ("hxl", "lo\n"), ("", "hello"), ("too long", "")]
        {
            std::fs::write(&path, earlier).unwrap();
            let mut partial = Partial::open(path.clone(), Digest::of_name(NAME), Some(6)).unwrap();
            partial.write(bytes.as_bytes()).unwrap();
            let result = partial.finish("a", &blob);
            assert!(
                matches!(result, Err(Failure::Mismatch { resumed, .. }) if resumed == (earlier == "hxl"))
            );
            assert!(!path.exists() && !blob.exists());
        }
    }
}
