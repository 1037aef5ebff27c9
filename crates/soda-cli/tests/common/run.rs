//! Runs a command that must succeed.

use std::path::Path;

use super::common::soda;

/// Runs `soda` with `args`. Returns its standard output and standard error.
#[track_caller]
pub(crate) fn run(folder: &Path, args: &[&str]) -> String {
    let output = soda(folder, args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned() + &said
}
