//! The files below a folder, as far as two runs of one command have the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Files and folders by their paths, with their comparable content.
pub(crate) type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// All files below a folder. A folder has no content.
pub(crate) fn tree(folder: &Path) -> Tree {
    let mut files = Tree::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().to_owned();
            let appended = ["tensorboard", "events.jsonl"];
            if name.components().any(|part| appended.iter().any(|name| part.as_os_str() == *name)) {
                // Each start of a run writes a file or lines of its own there.
                continue;
            }
            if path.is_dir() {
                // An empty folder that was left behind counts as well.
                files.insert(name, Vec::new());
                folders.push(path);
            } else {
                let bytes = comparable(&name, std::fs::read(&path).unwrap());
                files.insert(name, bytes);
            }
        }
    }
    files
}

/// Whether a path is that of a file or a folder that is not at its target, or is inside of one.
pub(crate) fn is_staged(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str().to_string_lossy().starts_with(".soda-"))
}

/// The first difference between two trees.
pub(crate) fn difference(found: &Tree, expected: &Tree) -> Option<String> {
    let extra = found.keys().find(|path| !expected.contains_key(*path));
    let missing = expected.keys().find(|path| !found.contains_key(*path));
    let other = expected.iter().find(|(path, bytes)| found.get(*path) != Some(*bytes));
    let extra = extra.map(|path| format!("{} is left behind", path.display()));
    let missing = missing.map(|path| format!("{} is missing", path.display()));
    extra.or(missing).or(other.map(|(path, _)| format!("{} has other bytes", path.display())))
}

/// Copies a folder and all that is in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).unwrap();
        }
    }
}

/// The content without times and sizes of memory, which differ between two runs.
fn comparable(path: &Path, bytes: Vec<u8>) -> Vec<u8> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.as_str() {
        "adapter.safetensors" => without_seconds(&bytes),
        "results.jsonl" | "probes.jsonl" | "peft.jsonl" => {
            let text = String::from_utf8(bytes).unwrap();
            let lines = text.split_inclusive('\n').map(|line| {
                // A line that a kill cut short is as it is. The next comparison drops it.
                let Ok(mut fields) = serde_json::from_str(line) else { return line.to_owned() };
                remove_measurements(&mut fields);
                format!("{fields}\n")
            });
            lines.collect::<String>().into_bytes()
        }
        // The page of a comparison has times in its tables.
        "report.html" if path.parent().is_none_or(|parent| parent.ends_with("out")) => Vec::new(),
        "report.html" => {
            let text = String::from_utf8(bytes).unwrap();
            let end = text.find(" s of training").unwrap();
            let start = text[..end].rfind(' ').unwrap();
            [&text[..start], &text[end..]].concat().into_bytes()
        }
        _ => bytes,
    }
}

/// An adapter without the seconds of its training, and without what depends on their number of digits.
fn without_seconds(bytes: &[u8]) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let training = header["__metadata__"]["training"].as_str().unwrap_or("{}");
    let mut training: Value = serde_json::from_str(training).unwrap();
    remove_measurements(&mut training);
    header["__metadata__"]["training"] = training;
    [header.to_string().as_bytes(), &bytes[8 + length..]].concat()
}

fn remove_measurements(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // An adapter file has its seconds in it, whose number of digits changes its size.
            let measured = ["seconds", "time", "memory", "date", "created_at", "file_size"];
            fields.retain(|name, _| !measured.iter().any(|part| name.contains(part)));
            fields.values_mut().for_each(remove_measurements);
        }
        Value::Array(values) => values.iter_mut().for_each(remove_measurements),
        _ => {}
    }
}
