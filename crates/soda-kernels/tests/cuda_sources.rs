//! The CUDA launchers, the kernels and the list of sources agree. The check reads files and needs no CUDA.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

const DTYPES: [&str; 3] = ["f32", "bf16", "f16"];

/// The texts of the files with one of these extensions in a folder of `src/cuda` and in the folders below.
fn texts(folder: &str, extensions: &[&str]) -> Vec<(String, String)> {
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/cuda").join(folder)];
    let mut texts = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if extensions.iter().any(|e| path.extension().is_some_and(|found| found == *e)) {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                texts.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    texts.sort();
    texts
}

/// The string literals that follow `prefix` in `text`.
fn literals<'a>(text: &'a str, prefix: &str) -> impl Iterator<Item = &'a str> {
    text.split(prefix).skip(1).map(|rest| rest.split('"').next().unwrap())
}

/// The names of the kernels in the sources, one for each dtype of an exported template.
fn defined() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, text) in texts("src", &["cu", "cuh"]) {
        for rest in text.split("__global__ void").skip(1) {
            let rest = rest.trim_start();
            // Launch bounds stand between the return type and the name.
            let rest = match rest.strip_prefix("__launch_bounds__(") {
                Some(bounds) => bounds.split_once(')').unwrap().1.trim_start(),
                None => rest,
            };
            let name = rest.split('(').next().unwrap();
            match name.strip_suffix("_##t") {
                Some(name) => names.extend(DTYPES.map(|dtype| format!("{name}_{dtype}"))),
                None => assert!(names.insert(name.to_owned()) || name.starts_with("attention")),
            }
        }
    }
    names
}

/// The names of the kernels that the launchers launch.
fn launched() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, text) in texts("launch", &["rs"]) {
        names.extend(literals(&text, "entry!(\"").map(str::to_owned));
        for name in literals(&text, "kernel!(\"") {
            names.extend(DTYPES.map(|dtype| format!("{name}_{dtype}")));
        }
    }
    names
}

#[test]
fn every_launched_kernel_is_defined_and_every_kernel_is_launched() {
    let (defined, launched) = (defined(), launched());
    let missing: Vec<_> = launched.difference(&defined).collect();
    assert!(missing.is_empty(), "the sources define no kernels {missing:?}");
    let idle: Vec<_> = defined.difference(&launched).collect();
    assert!(idle.is_empty(), "nothing launches the kernels {idle:?}");
    assert!(launched.len() > 40, "only {} kernels were found", launched.len());
}

#[test]
fn every_source_file_is_in_the_list_of_sources() {
    let list = texts("", &["rs"]).into_iter().find(|(name, _)| name == "sources.rs").unwrap().1;
    for (file, _) in texts("src", &["cu", "cuh"]) {
        let quoted = format!("{file}\"");
        assert!(list.contains(&quoted), "sources.rs does not list {file}");
    }
}
