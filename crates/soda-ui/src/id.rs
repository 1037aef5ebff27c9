//! Ids of files and folders: a request names a thing by its id, and never by its path.

use std::fmt::Write as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// The id of a path: 16 hexadecimal digits. Two paths of one listing have different ids in practice.
pub(crate) fn id_of(path: &Path) -> String {
    id_of_bytes(path.as_os_str().as_encoded_bytes())
}

/// The id of some bytes: 16 hexadecimal digits.
pub(crate) fn id_of_bytes(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest[..8].iter().fold(String::new(), |mut id, byte| {
        // Writing to a String cannot fail.
        let _ = write!(id, "{byte:02x}");
        id
    })
}

/// Whether `path` is a regular file below `root`, with no symbolic link that leads out of it.
pub(crate) fn is_file_below(root: &Path, path: &Path) -> bool {
    let (Ok(root), Ok(path)) = (root.canonicalize(), path.canonicalize()) else { return false };
    path.starts_with(root) && path.is_file()
}
