//! Runs the binary on the bundled model.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(dead_code, reason = "not every test file uses all of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A path in `examples/toybox`.
pub(crate) fn toybox(name: &str) -> PathBuf {
    soda_testing::workspace_path("examples/toybox").join(name)
}

/// Copies the files of a bundled subject, `castle_mug`, into a new folder.
pub(crate) fn copy_castle_mug(to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(toybox("subjects/castle_mug")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// The path of an export named `name`: PEFT's is a directory, others are files.
pub(crate) fn exported(name: &str, format: &str) -> String {
    if format == "peft" { name.to_owned() } else { format!("{name}.safetensors") }
}

/// The program under test: the file that `SODA_PROGRAM` names, or the one that cargo built for the tests.
pub(crate) fn program() -> PathBuf {
    let built = option_env!("CARGO_BIN_EXE_soda").map(PathBuf::from);
    let named = std::env::var_os("SODA_PROGRAM").map(PathBuf::from);
    named.or(built).expect("SODA_PROGRAM names the program `soda`")
}

/// Runs `soda` in `folder`.
pub(crate) fn soda(folder: &Path, args: &[&str]) -> Output {
    Command::new(program()).args(args).current_dir(folder).output().unwrap()
}
