//! Files and folders. A file is written whole or not at all.

use std::path::Path;

use image::{ImageError, ImageFormat, RgbImage};

use crate::error::TrainError;

/// Writes `bytes` to `path` whole or not at all: to a temporary file in the same folder, synced, then
/// renamed.
///
/// # Errors
/// Returns [`TrainError::Io`] if the folder is missing or not writable, or if the disk is full.
///
/// ```
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("notes.txt");
/// soda_train::write_file(&path, b"done")?;
/// assert_eq!(std::fs::read(&path)?, b"done");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    soda_files::write(path, bytes).map_err(TrainError::io("write", path))
}

/// Writes `image` to `path` as PNG, whole or not at all.
///
/// # Errors
/// Returns [`TrainError::Io`] as [`write_file`] does, or the encoder's error.
pub fn write_png(path: &Path, image: &RgbImage) -> Result<(), TrainError> {
    let bytes = png_bytes(image).map_err(TrainError::image(path))?;
    write_file(path, &bytes)
}

/// Encodes `image` as the content of a PNG file.
pub(crate) fn png_bytes(image: &RgbImage) -> Result<Vec<u8>, ImageError> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

/// Creates a folder and its missing parents. A folder that exists is left as it is.
pub(crate) fn create_folder(path: &Path) -> Result<(), TrainError> {
    std::fs::create_dir_all(path).map_err(TrainError::io("create", path))
}

/// Removes a file.
pub(crate) fn remove_file(path: &Path) -> Result<(), TrainError> {
    std::fs::remove_file(path).map_err(TrainError::io("remove", path))
}
