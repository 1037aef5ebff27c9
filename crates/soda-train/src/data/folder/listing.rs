//! The files of a folder by name.

use std::path::{Path, PathBuf};

use crate::data::metadata::composed;
use crate::error::TrainError;

/// `jfif` and `jpe` are JPEG files, as Windows names some that are saved from a browser.
const EXTENSIONS: &[&str] = &["png", "jpg", "jpeg", "jfif", "jpe", "webp", "bmp", "tif", "tiff"];
/// Image formats that are not supported.
const UNSUPPORTED: &[&str] =
    &["gif", "heic", "heif", "avif", "jxl", "jp2", "psd", "svg", "dng", "tga"];

/// The paths in a folder without hidden ones, sorted: the order of a directory listing differs between
/// machines, and that of the examples must not.
///
/// macOS writes a hidden `._0.png` beside every `0.png` on other systems' disks, and galleries keep removed
/// images as `.trashed-0.png`.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>, TrainError> {
    Ok(entries(folder)?.into_iter().map(|(path, _)| path).collect())
}

/// The paths of [`list`], and whether each is a folder or a link to one.
pub(super) fn entries(folder: &Path) -> Result<Vec<(PathBuf, bool)>, TrainError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(TrainError::io("read", folder))? {
        let entry = entry.map_err(TrainError::io("read", folder))?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        // The kind comes with the name, so that only links are looked at.
        let is_folder = match entry.file_type() {
            Ok(kind) if !kind.is_symlink() => kind.is_dir(),
            _ => path.is_dir(),
        };
        found.push((name, path, is_folder));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path, is_folder)| (path, is_folder)).collect())
}

/// The file at `name` below `folder`, in any normal form of Unicode.
pub(super) fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>, TrainError> {
    let mut path = folder.to_owned();
    for part in name.split('/') {
        let exact = path.join(part);
        path = if exact.exists() {
            exact
        } else if path.is_dir() {
            let part = composed(part);
            let same = |path: &PathBuf| composed(&file_name(path)) == part;
            let Some(found) = list(&path)?.into_iter().find(same) else { return Ok(None) };
            found
        } else {
            return Ok(None);
        };
    }
    Ok((!path.is_dir()).then_some(path))
}

/// The name of a file, with replacement characters where it is no UTF-8.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether a file is an image by its name.
pub(super) fn is_image(path: &Path) -> bool {
    has_extension(path, EXTENSIONS)
}

/// Whether a file is an image of an unsupported format by its name.
pub(super) fn is_unsupported_image(path: &Path) -> bool {
    has_extension(path, UNSUPPORTED)
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| extensions.contains(&&*extension.to_lowercase()))
}
