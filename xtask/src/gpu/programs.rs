//! Building the programs: the suite, the unit tests that use a device, and `soda`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Backend;
use crate::run::{Outcome, cargo_program};

/// The crates with unit tests that use a device.
const UNITS: &[&str] =
    &["soda-adapters", "soda-kernels", "soda-linalg", "soda-models", "soda-optim", "soda-train"];

/// The version of CUDA's bindings. No CUDA is needed to build.
const CUDA_BINDINGS: (&str, &str) = ("CUDARC_CUDA_VERSION", "13000");

/// Builds the workspace at `manifest` for `backend`. Puts the test programs into the folder `programs`, and
/// `soda` at the path `soda`.
pub(super) fn build(manifest: &Path, backend: Backend, programs: &Path, soda: &Path) -> Outcome {
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", programs.display());
    // A program of an earlier build would run too.
    if programs.exists() {
        fs::remove_dir_all(programs).map_err(failed)?;
    }
    fs::create_dir_all(programs).map_err(failed)?;
    // One selection of packages, and so one set of features, for both builds.
    let packages: Vec<&str> = ["suite", "soda-cli"].iter().chain(UNITS).copied().collect();
    let suite = cargo(manifest, backend, &packages, &["build", "--test=suite", "--bin=soda"])?;
    let units = cargo(manifest, backend, &packages, &["test", "--no-run", "--lib"])?;
    for (name, path) in suite.into_iter().chain(units) {
        let to = if name == "soda" { soda.to_owned() } else { programs.join(&name) };
        // Symbols are three quarters of a program.
        let status = Command::new("strip").arg("-o").arg(&to).arg(&path).status();
        let status = status.map_err(|error| format!("cannot run strip: {error}"))?;
        if !status.success() {
            return Err(format!("strip cannot write {}", to.display()));
        }
    }
    Ok(())
}

/// Runs cargo. Returns the names of the targets that have become programs, with the programs.
fn cargo(
    manifest: &Path,
    backend: Backend,
    packages: &[&str],
    args: &[&str],
) -> Result<Vec<(String, PathBuf)>, String> {
    let name = backend.name();
    let features = format!("suite/{name},soda-cli/{name},soda-cli/persistence");
    let mut command = Command::new(cargo_program());
    command.args(args).arg("--manifest-path").arg(manifest).args(["--features", &features]);
    command.args(packages.iter().flat_map(|package| ["--package", package]));
    command.arg("--message-format=json-render-diagnostics");
    command.env(CUDA_BINDINGS.0, CUDA_BINDINGS.1).stdout(Stdio::piped());
    let output = command
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        return Err("cargo cannot build the tests".to_owned());
    }
    Ok(programs(&String::from_utf8_lossy(&output.stdout)))
}

/// The programs in cargo's messages, one a line, by the names of their targets.
fn programs(messages: &str) -> Vec<(String, PathBuf)> {
    let text = |line: &str, before: &str| -> Option<String> {
        let (_, rest) = line.split_once(before)?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let program = |line: &str| {
        let path = text(line, r#""executable":""#)?;
        // The name of the package is no field of the message, so that the first name is the target's.
        Some((text(line, r#""name":""#)?, PathBuf::from(path)))
    };
    messages.lines().filter_map(program).collect()
}

#[cfg(test)]
mod tests {
    use super::programs;

    #[test]
    fn programs_are_found_in_messages_of_cargo() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"burn"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"suite"},"executable":"/a/suite-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(programs(messages), [("suite".to_owned(), "/a/suite-1".into())]);
    }
}
