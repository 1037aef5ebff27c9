//! A file is short enough to be read, a folder short enough to be looked over.

use std::collections::BTreeMap;

use super::Faults;
use super::tree::{Tree, folder_of};

/// A source file longer than this holds more than one concept.
const MAX_LINES: usize = 450;

/// A folder with more files than this has no order.
const MAX_FILES: usize = 20;

/// Documents and the lines that each may have.
const DOCUMENTS: &[(&str, usize)] = &[("README.md", 110), ("docs/ARCHITECTURE.md", 200)];

/// Where folders are counted.
const COUNTED: &[&str] = &["crates/", "examples/", "benches/", "xtask/", "docs/"];

pub(crate) fn check(tree: &Tree, faults: &mut Faults) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (path, text) in tree.iter() {
        let is_source = [".rs", ".cu", ".cuh"].iter().any(|end| path.ends_with(end));
        let limit =
            DOCUMENTS.iter().find(|(document, _)| *document == path).map(|(_, limit)| *limit);
        let limit = limit.or(is_source.then_some(MAX_LINES));
        let lines = text.lines().count();
        if let Some(limit) = limit.filter(|limit| lines > *limit) {
            faults.push(format!("{path}: {lines} lines, more than {limit}"));
        }
        if COUNTED.iter().any(|folder| path.starts_with(folder)) {
            *counts.entry(folder_of(path)).or_default() += 1;
        }
    }
    for (folder, count) in counts {
        if count > MAX_FILES && !is_data(folder) {
            faults.push(format!("{folder}: {count} files in one folder, more than {MAX_FILES}"));
        }
    }
}

/// Whether a folder holds data only: fixtures of tests and the bundled model.
fn is_data(folder: &str) -> bool {
    folder.contains("/fixtures") || folder.starts_with("examples/toybox")
}

#[cfg(test)]
mod tests {
    use super::super::faults_of;

    #[test]
    fn a_long_file_is_a_fault() {
        let long = "//! Long.\n".repeat(451);
        assert_eq!(faults_of(super::check, &[("crates/a/src/lib.rs", &long)]).len(), 1);
        assert!(faults_of(super::check, &[("crates/a/src/lib.rs", &long[10..])]).is_empty());
        assert_eq!(faults_of(super::check, &[("README.md", &"x\n".repeat(111))]).len(), 1);
    }

    #[test]
    fn a_full_folder_is_a_fault_and_fixtures_are_not_counted() {
        let names: Vec<String> = (0..21).map(|i| format!("/f{i}.rs")).collect();
        let files = |folder: &str| names.iter().map(|name| format!("{folder}{name}")).collect();
        let count = |paths: Vec<String>| {
            let files: Vec<_> = paths.iter().map(|path| (path.as_str(), "")).collect();
            faults_of(super::check, &files).len()
        };
        assert_eq!(count(files("crates/a/src")), 1);
        assert_eq!(count(files("crates/a/tests/fixtures")), 0);
    }
}
