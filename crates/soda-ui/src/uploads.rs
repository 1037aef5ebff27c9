//! Pictures that the page sends into a data folder.
//!
//! | bound | value |
//! |---|---|
//! | bytes of a picture | [`MAX_BYTES`] |
//! | pixels of a picture, checked before they are decoded | [`MAX_PIXELS`] |
//! | files of a folder | [`MAX_FILES`] |
//! | formats, by content | PNG and JPEG |
//!
//! The name is made of the content, so that no name of a request reaches the disk, and a picture that is sent
//! twice is stored once.

use std::io::{Cursor, Write as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, ImageReader};
use serde::Deserialize;
use soda_files::StagedFile;
use soda_models::image::read_rgb;

use crate::id::id_of_bytes;

/// The most bytes of a request with a picture, which is base64 in JSON.
pub(crate) const MAX_BODY: usize = MAX_BYTES / 3 * 4 + 4096;
/// The most bytes of a picture.
const MAX_BYTES: usize = 24 << 20;
/// The most pixels of a picture. Decoded they may have eight bytes each.
const MAX_PIXELS: u64 = 40_000_000;
/// The most files of a folder that still takes pictures.
const MAX_FILES: usize = 20_000;

/// The body of a request with a picture.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UploadForm {
    /// The file, base64.
    picture: String,
}

/// Stores pictures, one after the other: a decoded picture is large.
#[derive(Default)]
pub(crate) struct Uploads(Mutex<()>);

impl Uploads {
    /// Waits until no other picture is decoded.
    pub(crate) fn one_at_a_time(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a picture in a data folder. Returns its file name, and whether it is new.
    ///
    /// # Errors
    /// A sentence that says why the picture is refused.
    pub(crate) fn store(&self, folder: &Path, form: &UploadForm) -> Result<(String, bool), String> {
        let bytes = STANDARD.decode(&form.picture);
        let bytes = bytes.map_err(|error| format!("the picture is not base64: {error}"))?;
        if bytes.len() > MAX_BYTES {
            return Err(format!("a picture has at most {} MiB", MAX_BYTES >> 20));
        }
        let extension = match image::guess_format(&bytes) {
            Ok(ImageFormat::Png) => "png",
            Ok(ImageFormat::Jpeg) => "jpg",
            _ => return Err("only PNG and JPEG pictures are taken".to_owned()),
        };
        let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format();
        let size = reader.map_err(|error| error.to_string()).and_then(|reader| {
            reader.into_dimensions().map_err(|error| format!("the picture is damaged: {error}"))
        });
        let (width, height) = size?;
        if u64::from(width) * u64::from(height) > MAX_PIXELS {
            return Err(format!(
                "the picture has {width} x {height} pixels, more than {} million: reduce it",
                MAX_PIXELS / 1_000_000
            ));
        }
        let _one = self.one_at_a_time();
        check_count(folder)?;
        let name = format!("{}.{extension}", id_of_bytes(&bytes));
        let target = folder.join(&name);
        if target.symlink_metadata().is_ok() {
            return Ok((name, false));
        }
        let written = |error: std::io::Error| format!("cannot write the picture: {error}");
        let mut staged = StagedFile::new(&target).map_err(written)?;
        staged.file().write_all(&bytes).map_err(written)?;
        // What the trainer cannot read is not stored.
        if let Err(error) = read_rgb(staged.path()) {
            let path = staged.path().display().to_string();
            return Err(format!(
                "the picture is damaged: {}",
                error.to_string().replace(&path, &name)
            ));
        }
        staged.commit().map_err(written)?;
        Ok((name, true))
    }
}

/// Returns an error if a folder takes no more files.
pub(crate) fn check_count(folder: &Path) -> Result<(), String> {
    let count = std::fs::read_dir(folder).map_or(usize::MAX, |entries| entries.count());
    match count < MAX_FILES {
        true => Ok(()),
        false => Err(format!("the folder has {MAX_FILES} files or cannot be read")),
    }
}
