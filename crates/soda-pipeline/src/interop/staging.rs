//! Folders that appear whole or not at all.

use std::path::Path;

use soda_files::StagedFolder;

use crate::error::{FormatError, PipelineError};

/// Fills a new folder by `write` and gives it the name `folder`.
///
/// `write` gets a staging folder. After an error nothing is left.
///
/// # Errors
/// The error of `write`, or [`FormatError::Io`] if `folder` exists or the operating system refuses.
pub(super) fn write_folder<T>(
    folder: &Path,
    write: impl FnOnce(&Path) -> Result<T, PipelineError>,
) -> Result<T, PipelineError> {
    let io = |source| FormatError::Io { action: "create", path: folder.to_owned(), source };
    if folder.symlink_metadata().is_ok() {
        return Err(io(std::io::ErrorKind::AlreadyExists.into()).into());
    }
    let staging = StagedFolder::new(folder).map_err(io)?;
    let written = write(staging.path()).map_err(|error| match error {
        PipelineError::Format(FormatError::Io { action, path, source }) => {
            FormatError::Io { action, path: staging.committed(&path), source }.into()
        }
        other => other,
    })?;
    staging.commit().map_err(io)?;
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let names = || -> Vec<_> {
            let entries = std::fs::read_dir(root.path()).expect("a folder");
            entries.map(|entry| entry.expect("an entry").file_name()).collect()
        };
        let folder = root.path().join("adapter");
        let file = |inside: &Path| std::fs::write(inside.join("first"), "1").expect("a file");
        let failed: Result<(), _> = write_folder(&folder, |inside| {
            file(inside);
            let path = inside.join("second");
            Err(FormatError::NonFinite { path, key: "second".to_owned() }.into())
        });
        assert!(failed.is_err() && names().is_empty(), "{:?}", names());

        let written = write_folder(&folder, |inside| {
            file(inside);
            Ok(())
        });
        written.expect("a new folder");
        assert_eq!(names(), ["adapter"]);
        assert!(folder.join("first").is_file());
        let error = write_folder(&folder, |_| Ok(())).expect_err("it exists").to_string();
        assert!(error.contains("adapter"), "{error}");
        assert!(folder.join("first").is_file());
    }
}
