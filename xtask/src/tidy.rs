//! The structure that `docs/ARCHITECTURE.md` promises, as a check: every Rust file says what it is and is
//! short enough to be read, libraries print nothing and name no backend, dependencies point down.

use std::fs;
use std::path::{Path, PathBuf};

use crate::run::{Outcome, root};

/// A file longer than this holds more than one concept.
const MAX_LINES: usize = 450;

/// Which of our crates a crate may use.
const LAYERS: &[(&str, &[&str])] = &[
    ("soda-hub", &[]),
    ("soda-kernels", &[]),
    ("soda-linalg", &["soda-kernels"]),
    ("soda-models", &["soda-kernels"]),
    ("soda-adapters", &["soda-kernels", "soda-linalg"]),
    ("soda-train", &["soda-kernels", "soda-linalg", "soda-models", "soda-adapters"]),
    ("soda-compare", &["soda-train"]),
    (
        "soda-cli",
        &["soda-hub", "soda-kernels", "soda-models", "soda-adapters", "soda-train", "soda-compare"],
    ),
];

/// Words a library's sources may not contain, and where they belong.
const FORBIDDEN: &[(&str, &str)] = &[
    ("Device::flex", "only soda-cli names a backend"),
    ("Device::wgpu", "only soda-cli names a backend"),
    ("Device::cuda", "only soda-cli names a backend"),
    ("println!", "libraries print nothing"),
    ("todo!(", "no stubs"),
    ("unimplemented!(", "no stubs"),
];

pub(crate) fn tidy() -> Outcome {
    let root = root();
    let mut faults = Vec::new();
    for folder in ["crates", "examples", "benches", "xtask"] {
        for file in rust_files(&root.join(folder)) {
            check_file(&root, &file, &mut faults);
        }
    }
    for (name, allowed) in LAYERS {
        check_layer(&root, name, allowed, &mut faults);
    }
    if faults.is_empty() { Ok(()) } else { Err(format!("tidy:\n  {}", faults.join("\n  "))) }
}

fn check_file(root: &Path, file: &Path, faults: &mut Vec<String>) {
    let name = file.strip_prefix(root).unwrap_or(file).display().to_string();
    let text = fs::read_to_string(file).unwrap_or_default();
    if !text.starts_with("//!") {
        faults.push(format!("{name}: starts with `//!`, which says what the file is"));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        faults.push(format!("{name}: {lines} lines, more than {MAX_LINES}"));
    }
    let library =
        name.starts_with("crates") && !name.contains("soda-cli") && !name.contains("tests");
    if library {
        for (word, reason) in FORBIDDEN {
            if text.lines().any(|line| line.contains(word) && !line.trim_start().starts_with("//"))
            {
                faults.push(format!("{name}: `{word}`: {reason}"));
            }
        }
    }
}

fn check_layer(root: &Path, name: &str, allowed: &[&str], faults: &mut Vec<String>) {
    let manifest =
        fs::read_to_string(root.join("crates").join(name).join("Cargo.toml")).unwrap_or_default();
    let dependencies = manifest
        .lines()
        .skip_while(|line| line.trim() != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['));
    for line in dependencies {
        let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
        if dependency.starts_with("soda-") && !allowed.contains(&dependency) {
            faults.push(format!("{name} depends on {dependency}: dependencies point down only"));
        }
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}
