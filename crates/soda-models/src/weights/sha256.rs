//! The checksum that names a base model.

use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::ModelError;

/// The SHA-256 of a file in lower-case hexadecimal, which identifies a base model.
///
/// # Errors
///
/// [`ModelError::Missing`] or [`ModelError::Io`] if the file cannot be read.
pub fn sha256(path: &Path) -> Result<String, ModelError> {
    let io = |e| ModelError::io(path, "a weight file", e);
    let mut file = crate::input_file::open(path).map_err(io)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    Ok(format!("{:x}", hasher.finalize()))
}
