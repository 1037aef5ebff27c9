//! Running cargo in the workspace.

use std::path::PathBuf;
use std::process::Command;

pub(crate) type Outcome = Result<(), String>;

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

/// Runs the cargo that runs us, at the root.
pub(crate) fn cargo(args: &[&str]) -> Outcome {
    command(args, &[])
}

/// The same with environment variables.
pub(crate) fn command(args: &[&str], variables: &[(&str, &str)]) -> Outcome {
    let line = format!("cargo {}", args.join(" "));
    eprintln!("$ {line}");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(args)
        .envs(variables.iter().copied())
        .current_dir(root())
        .status()
        .map_err(|error| format!("cannot run `{line}`: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{line}` failed")) }
}
