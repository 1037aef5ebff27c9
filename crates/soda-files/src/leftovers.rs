//! Staged files and folders that killed processes left.
//!
//! The owner of a staged file or folder holds an advisory lock on it. The operating system releases the lock
//! when the owner ends. Process numbers would mislead: two containers that share a folder reuse them.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const PREFIX: &str = ".soda-";
const SUFFIX: &str = ".tmp";
/// The number of hexadecimal digits between prefix and suffix.
const DIGITS: usize = 16;

/// A name for a staged file or folder, different in every call.
pub(crate) fn staged_name() -> String {
    // Each `RandomState` has other keys.
    let random = RandomState::new().build_hasher().finish();
    format!("{PREFIX}{random:016x}{SUFFIX}")
}

/// Whether `name` is the result of [`staged_name`].
fn is_staged_name(name: &str) -> bool {
    let digits = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    digits.is_some_and(|digits| digits.len() == DIGITS && digits.bytes().all(is_digit))
}

/// Removes the leftovers in `folder`, once in the life of this process.
pub(crate) fn remove_leftovers_once(folder: &Path) {
    static DONE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let Ok(key) = std::path::absolute(folder) else { return };
    // A poisoned set means that a thread panicked while it held the lock; leftovers can stay then.
    if DONE.lock().is_ok_and(|mut done| done.insert(key)) {
        remove_leftovers(folder);
    }
}

/// Removes the staged files and folders in `folder` whose owner is gone. Those of processes that go on stay.
///
/// Nothing is reported: a leftover that cannot be removed harms no result. Only Unix has the locks that tell
/// whether the owner is gone; other systems keep leftovers.
pub fn remove_leftovers(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(is_staged_name) {
            remove_if_abandoned(&entry.path());
        }
    }
}

#[cfg(unix)]
fn remove_if_abandoned(path: &Path) {
    use std::fs::{OpenOptions, remove_dir_all, remove_file};

    let Ok(kind) = path.symlink_metadata().map(|data| data.file_type()) else { return };
    if !kind.is_file() && !kind.is_dir() {
        return;
    }
    // A folder can be opened for reading only; some network file systems lock files that are open for writing
    // only.
    let mut options = OpenOptions::new();
    options.read(true).write(kind.is_file());
    crate::lock::no_follow(&mut options);
    let Ok(file) = options.open(path) else { return };
    // The lock is held while the leftover is removed: an owner that created it a moment ago sees its loss.
    if file.try_lock().is_ok() {
        let _ = if kind.is_dir() { remove_dir_all(path) } else { remove_file(path) };
    }
}

#[cfg(not(unix))]
fn remove_if_abandoned(_: &Path) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_staged_files_are_leftovers() {
        for _ in 0..100 {
            assert!(is_staged_name(&staged_name()));
        }
        assert_ne!(staged_name(), staged_name());
        for name in [".soda-models", ".soda-.tmp", ".soda-0123456789ABCDEF.tmp", "soda.tmp", ""] {
            assert!(!is_staged_name(name), "{name}");
        }
    }
}
