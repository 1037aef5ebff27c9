//! Running cargo in the workspace.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// What a command of `cargo xtask` comes to; the error is a sentence for the user.
pub(crate) type Outcome = Result<(), String>;

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

/// The cargo that runs this program.
pub(crate) fn cargo_program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Runs cargo at the root.
pub(crate) fn cargo(args: &[&str]) -> Outcome {
    cargo_with(args, &[])
}

/// Runs cargo at the root with environment variables.
pub(crate) fn cargo_with(args: &[&str], variables: &[(&str, &str)]) -> Outcome {
    let set: String = variables.iter().map(|(name, value)| format!("{name}='{value}' ")).collect();
    let line = format!("{set}cargo {}", args.join(" "));
    eprintln!("$ {line}");
    let status = Command::new(cargo_program())
        .args(args)
        .envs(variables.iter().copied())
        .current_dir(root())
        .status()
        .map_err(|error| format!("cannot run `{line}`: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{line}` failed")) }
}
