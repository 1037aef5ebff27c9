//! A device that the build or the machine lacks: one sentence, whatever the command was to do.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::process::Command;

use common::{program, toybox};

/// The sentence of a command that must fail, with an option and an environment variable.
fn refused(option: &[&str], variable: (&str, &str)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program());
    command.args(["generate", "--prompt", "a mug", "--steps", "1", "--base"]).arg(toybox("base"));
    // The driver shows no card to a process with this variable.
    command.args(option).env("CUDA_VISIBLE_DEVICES", "").env(variable.0, variable.1);
    let output = command.current_dir(folder.path()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was written");
    said
}

#[test]
fn a_missing_device_is_one_sentence() {
    for device in ["cuda", "cuda:0", "cuda:7"] {
        let said = refused(&["--device", device], ("BURN_DEVICE", "flex"));
        assert!(said.to_lowercase().contains("cuda"), "{device}: {said}");
    }
    let said = refused(&[], ("BURN_DEVICE", "cuda"));
    assert!(said.to_lowercase().contains("cuda"), "{said}");
}

#[test]
fn an_unknown_name_in_the_environment_is_one_sentence() {
    let said = refused(&[], ("BURN_DEVICE", "abacus"));
    assert!(said.contains("BURN_DEVICE") && said.contains("abacus"), "{said}");
}
