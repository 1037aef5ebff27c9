//! The files that the checks read.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Folders at the root whose files are read, with everything below them.
const FOLDERS: &[&str] = &["crates", "examples", "benches", "xtask", "docs", ".github"];

/// Names of folders that are never entered: build output and caches.
const SKIPPED: &[&str] = &["target", "__pycache__"];

/// Extensions of files whose text is read; of others only the name is known.
const TEXT: &[&str] = &["rs", "toml", "md", "py", "cu", "cuh", "sh", "yml"];

/// All files of the workspace: path from the root, with `/`, to text.
pub(crate) struct Tree {
    files: BTreeMap<String, String>,
}

impl Tree {
    /// Reads the workspace at `root`.
    pub(crate) fn read(root: &Path) -> Self {
        let mut tree = Self { files: BTreeMap::new() };
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if path.is_file() {
                tree.add(name, &path);
            } else if FOLDERS.contains(&name.as_str()) {
                tree.add_folder(&name, &path);
            }
        }
        tree
    }

    /// A tree of the given paths and texts, for tests.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
        Self { files: files.collect() }
    }

    /// Paths and texts of all files with the extension.
    pub(crate) fn with_extension<'a>(
        &'a self,
        extension: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        let matches = move |path: &str| path.rsplit_once('.').is_some_and(|(_, e)| e == extension);
        self.iter().filter(move |(path, _)| matches(path))
    }

    /// Paths and texts of all files, sorted by path.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The text of one file; `None` where there is no such file.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// Whether `path` is a file or a folder of the tree.
    pub(crate) fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let inside = format!("{path}/");
        path.is_empty()
            || self.files.contains_key(path)
            || self.files.keys().any(|file| file.starts_with(&inside))
    }

    fn add_folder(&mut self, name: &str, folder: &Path) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let inner = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if !path.is_dir() {
                self.add(format!("{name}/{inner}"), &path);
            } else if !SKIPPED.contains(&inner.as_str()) {
                self.add_folder(&format!("{name}/{inner}"), &path);
            }
        }
    }

    fn add(&mut self, name: String, path: &Path) {
        let is_text = path.extension().is_some_and(|e| TEXT.iter().any(|text| e == *text));
        let text =
            if is_text { fs::read_to_string(path).unwrap_or_default() } else { String::new() };
        self.files.insert(name, text);
    }
}

/// The folder of a path, without a slash at its end; empty at the root.
pub(crate) fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The crate of a path such as `crates/soda-train/src/lib.rs`; `None` outside `crates`.
pub(crate) fn crate_of(path: &str) -> Option<&str> {
    path.strip_prefix("crates/")?.split('/').next()
}
