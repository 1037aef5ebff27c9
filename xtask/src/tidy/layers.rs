//! Dependencies between the crates of the workspace point down, by their `Cargo.toml`.

use super::{Faults, tree::Tree};

/// Each crate, and the crates of the workspace that its code may use.
const LAYERS: &[(&str, &[&str])] = &[
    ("soda-testing", &[]),
    ("soda-distributed", &[]),
    ("soda-files", &[]),
    ("soda-hub", &[]),
    ("soda-kernels", &[]),
    ("soda-linalg", &["soda-files", "soda-kernels"]),
    ("soda-models", &["soda-files", "soda-kernels"]),
    ("soda-adapters", &["soda-kernels", "soda-linalg"]),
    ("soda-optim", &["soda-kernels", "soda-linalg", "soda-adapters"]),
    (
        "soda-pipeline",
        &["soda-files", "soda-kernels", "soda-linalg", "soda-models", "soda-adapters"],
    ),
    (
        "soda-train",
        &[
            "soda-distributed",
            "soda-files",
            "soda-kernels",
            "soda-linalg",
            "soda-models",
            "soda-adapters",
            "soda-optim",
            "soda-pipeline",
        ],
    ),
    ("soda-ui", &["soda-files", "soda-models", "soda-adapters", "soda-train"]),
    ("soda-compare", &["soda-models", "soda-optim", "soda-train"]),
    (
        "soda-cli",
        &[
            "soda-distributed",
            "soda-files",
            "soda-hub",
            "soda-kernels",
            "soda-linalg",
            "soda-models",
            "soda-adapters",
            "soda-optim",
            "soda-pipeline",
            "soda-train",
            "soda-compare",
            "soda-ui",
        ],
    ),
];

/// The crate of comparisons for tests; no build uses it.
const TESTING: &str = "soda-testing";

/// Crates that no layer orders: the stand-in for a published crate.
const APART: &[&str] = &["cubecl-llvm-stub"];

pub(crate) fn check(tree: &Tree, faults: &mut Faults) {
    for (path, text) in tree.with_extension("toml") {
        let name = path.strip_prefix("crates/").and_then(|rest| rest.strip_suffix("/Cargo.toml"));
        let Some(name) = name.filter(|name| !APART.contains(name)) else { continue };
        let Some((_, allowed)) = LAYERS.iter().find(|(layer, _)| *layer == name) else {
            faults.push(format!("{path}: {name} has no row in the table of layers"));
            continue;
        };
        check_manifest(path, text, name, allowed, faults);
    }
}

fn check_manifest(path: &str, text: &str, name: &str, allowed: &[&str], faults: &mut Faults) {
    let mut section = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(title) = line.strip_prefix('[') {
            section = title.trim_end_matches(']').to_owned();
            continue;
        }
        let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
        if !dependency.starts_with("soda-") {
            continue;
        }
        let below = allowed.contains(&dependency);
        // A crate turns on features of its own for its tests.
        let for_tests = below || dependency == TESTING || dependency == name;
        match section.as_str() {
            "dependencies" if !below => faults.push(format!(
                "{path}: {name} depends on {dependency}; dependencies point down only"
            )),
            "dev-dependencies" if !for_tests => faults.push(format!(
                "{path}: the tests of {name} depend on {dependency}, which is not below {name}"
            )),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::faults_of;

    fn count(manifest: &str) -> usize {
        faults_of(super::check, &[("crates/soda-linalg/Cargo.toml", manifest)]).len()
    }

    #[test]
    fn a_dependency_that_points_up_is_a_fault() {
        assert_eq!(count("[dependencies]\nsoda-kernels.workspace = true\n"), 0);
        assert_eq!(count("[dependencies]\nsoda-train.workspace = true\n"), 1);
        assert_eq!(count("[dependencies]\nsoda-testing.workspace = true\n"), 1);
    }

    #[test]
    fn tests_may_use_the_testing_crate_and_nothing_above() {
        assert_eq!(count("[dev-dependencies]\nsoda-testing.workspace = true\n"), 0);
        assert_eq!(count("[dev-dependencies]\nsoda-models.workspace = true\n"), 1);
    }

    #[test]
    fn a_crate_without_a_layer_is_a_fault() {
        assert_eq!(faults_of(super::check, &[("crates/soda-new/Cargo.toml", "")]).len(), 1);
    }
}
