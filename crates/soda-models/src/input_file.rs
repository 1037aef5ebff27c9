//! Files from outside: a file is opened only if it is a regular one, and read only up to a size limit.
//!
//! A named pipe would block for ever, and a device has no end. A sparse file of terabytes costs its maker
//! nothing. So every reader of this workspace opens its files here, before anything of their content is
//! believed.

use std::fs::{File, FileType};
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// The largest size of a kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeLimit {
    /// The largest size, in bytes.
    pub bytes: u64,
    /// The kind of file, for messages.
    pub kind: &'static str,
}

impl SizeLimit {
    /// A JSON or TOML file of settings. Those of published models have a few kilobytes.
    pub const SETTINGS: Self = Self { bytes: 4 << 20, kind: "a file of settings" };
    /// A file of a tokenizer. The largest vocabularies in use have 20 MB.
    pub const TOKENIZER: Self = Self { bytes: 64 << 20, kind: "a tokenizer's file" };
    /// The index of several weight files.
    pub const INDEX: Self = Self { bytes: 64 << 20, kind: "an index of weights" };
    /// The caption of one image.
    pub const CAPTION: Self = Self { bytes: 1 << 20, kind: "a caption" };
    /// A list with a line for each image, step or result.
    pub const LIST: Self = Self { bytes: 256 << 20, kind: "a list" };
    /// An encoded image. A raw scan of [`MAX_PIXELS`](crate::image::MAX_PIXELS) has 450 MB.
    pub const IMAGE: Self = Self { bytes: 1 << 30, kind: "an image" };
    /// Tensors that are held in memory at once. All weights of SDXL in f32 have 10 GB.
    pub const TENSORS: Self = Self { bytes: 64 << 30, kind: "a file of tensors" };
}

/// Opens a regular file for reading, and follows links to one.
///
/// # Errors
///
/// The system's error, or one that names the kind of the file: a directory, a named pipe, a socket or a
/// device.
pub fn open(path: &Path) -> Result<File> {
    // Opening a named pipe would wait for a writer, so that its kind is looked at first.
    check_kind(std::fs::metadata(path)?.file_type())?;
    let file = File::open(path)?;
    check_kind(file.metadata()?.file_type())?;
    Ok(file)
}

/// Reads a regular file that is not larger than `limit`.
///
/// # Errors
///
/// As [`open`], and [`ErrorKind::FileTooLarge`] for a larger file.
///
/// ```
/// use soda_models::input_file::{self, SizeLimit};
///
/// let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
/// assert!(input_file::read(&folder.join("Cargo.toml"), SizeLimit::SETTINGS)?.len() > 100);
/// let error = input_file::read(folder, SizeLimit::SETTINGS).unwrap_err();
/// assert_eq!(error.to_string(), "it is a directory, not a file");
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn read(path: &Path, limit: SizeLimit) -> Result<Vec<u8>> {
    let file = open(path)?;
    let size = file.metadata()?.len();
    check_size(size, limit)?;
    let mut bytes = Vec::new();
    // The size was checked. An error is better than an abort where the memory does not suffice.
    bytes.try_reserve_exact(size as usize).map_err(|_| too_little_memory(size))?;
    // The file may grow while it is read.
    file.take(limit.bytes + 1).read_to_end(&mut bytes)?;
    check_size(bytes.len() as u64, limit)?;
    Ok(bytes)
}

/// Reads a regular UTF-8 file that is not larger than `limit`.
///
/// # Errors
///
/// As [`read`], and [`ErrorKind::InvalidData`] for a file that is not UTF-8.
pub fn read_text(path: &Path, limit: SizeLimit) -> Result<String> {
    String::from_utf8(read(path, limit)?)
        .map_err(|_| Error::new(ErrorKind::InvalidData, "stream did not contain valid UTF-8"))
}

fn check_size(size: u64, limit: SizeLimit) -> Result<()> {
    if size <= limit.bytes {
        return Ok(());
    }
    let SizeLimit { bytes, kind } = limit;
    let megabytes = bytes >> 20;
    let reason = format!("it has {size} bytes, and {kind} has at most {megabytes} MiB");
    Err(Error::new(ErrorKind::FileTooLarge, reason))
}

fn too_little_memory(size: u64) -> Error {
    let reason = format!("its {size} bytes do not fit into memory");
    Error::new(ErrorKind::OutOfMemory, reason)
}

fn check_kind(kind: FileType) -> Result<()> {
    if kind.is_file() {
        return Ok(());
    }
    let (error, name) = match kind.is_dir() {
        true => (ErrorKind::IsADirectory, "a directory"),
        false => (ErrorKind::InvalidInput, special_kind(kind)),
    };
    Err(Error::new(error, format!("it is {name}, not a file")))
}

#[cfg(unix)]
fn special_kind(kind: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt as _;
    match kind {
        kind if kind.is_fifo() => "a named pipe",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    }
}

#[cfg(not(unix))]
fn special_kind(_: FileType) -> &'static str {
    "a device"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn a_file_above_its_limit_is_refused_before_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sparse");
        // No memory holds a terabyte, so that reading it would fail in another way.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        for limit in [SizeLimit::SETTINGS, SizeLimit::LIST, SizeLimit::TENSORS] {
            let error = read(&path, limit).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FileTooLarge);
            assert!(error.to_string().contains("1099511627776 bytes"), "{error}");
        }
        let limit = SizeLimit { bytes: 3, kind: "a trial" };
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(read_text(&path, limit).unwrap(), "abc");
        std::fs::write(&path, "abcd").unwrap();
        assert!(read_text(&path, limit).is_err());
        std::fs::write(&path, [255]).unwrap();
        assert_eq!(read_text(&path, limit).unwrap_err().kind(), ErrorKind::InvalidData);
        let missing = read(&folder.path().join("missing"), limit).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }

    #[cfg(unix)]
    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        assert!(open(folder.path()).unwrap_err().to_string().contains("a directory"));
        assert!(open(Path::new("/dev/zero")).unwrap_err().to_string().contains("a device"));
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(open(&socket).unwrap_err().to_string().contains("a socket"));
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert!(open(&pipe).unwrap_err().to_string().contains("a named pipe"));
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, "x").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(open(&link).is_ok());
    }
}
