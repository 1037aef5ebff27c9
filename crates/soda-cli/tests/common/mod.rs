//! Runs the binary on the bundled model.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A path in `examples/toybox`.
pub(crate) fn toybox(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/toybox").join(name)
}

/// Runs `soda` in `folder`.
#[allow(dead_code, reason = "not every test file runs commands to their end")]
pub(crate) fn soda(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_soda")).args(args).current_dir(folder).output().unwrap()
}
