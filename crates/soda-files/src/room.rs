//! Whether a folder takes more bytes.

use std::io::Write as _;
use std::path::Path;

use crate::staged::StagedFile;

/// The bytes of one write.
const BLOCK: usize = 1 << 20;

/// Whether a file of `bytes` bytes can be written into `folder`, which is created. The file is removed again.
///
/// ```
/// let folder = tempfile::tempdir()?;
/// assert!(soda_files::has_room(folder.path(), 1000));
/// soda_files::write(&folder.path().join("file"), b"")?;
/// assert!(!soda_files::has_room(&folder.path().join("file/folder"), 1000));
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn has_room(folder: &Path, bytes: u64) -> bool {
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let mut file = StagedFile::new(&folder.join("room"))?;
        let zeros = vec![0; BLOCK];
        let mut left = bytes;
        while left > 0 {
            let part = left.min(BLOCK as u64);
            file.file().write_all(&zeros[..part as usize])?;
            left -= part;
        }
        Ok(())
    };
    write().is_ok()
}
