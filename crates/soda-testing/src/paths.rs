//! Paths of test data, which may lie elsewhere than where the tests were built.

use std::path::{Path, PathBuf};

/// A path relative to the root of the workspace, such as `examples/toybox/base`.
///
/// The environment variable `SODA_WORKSPACE` names the root, for test programs that run on another machine.
/// Without it, the root is where the tests were built.
pub fn workspace_path(path: impl AsRef<Path>) -> PathBuf {
    let root = std::env::var_os("SODA_WORKSPACE").map(PathBuf::from);
    let root = root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    root.join(path)
}

#[cfg(test)]
mod tests {
    use super::workspace_path;

    #[test]
    fn the_root_has_the_crates() {
        assert!(workspace_path("crates/soda-testing/Cargo.toml").is_file());
    }
}
