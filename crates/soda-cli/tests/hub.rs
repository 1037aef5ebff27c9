//! Base models by their names, from a hub server on this machine.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../soda-hub/tests/server/mod.rs"]
mod server;

use std::path::Path;
use std::process::{Command, Output};

use common::program;
use server::{serve, toybox_repo, unreachable_endpoint};

fn soda(folder: &Path, variables: &[(&str, &str)], args: &[&str]) -> Output {
    let mut soda = Command::new(program());
    soda.current_dir(folder).args(args).env("HF_HOME", folder.join("home"));
    for name in ["HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"] {
        soda.env_remove(name);
    }
    // A proxy would not reach the test's server.
    soda.env("NO_PROXY", "127.0.0.1").envs(variables.iter().copied()).output().unwrap()
}

const DRAW: &[&str] = &["generate", "--steps", "1", "--prompt", "a mug", "--base"];

#[test]
fn a_named_base_is_downloaded_once() {
    let server = serve(toybox_repo());
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let run = |endpoint: &str, more: &[(&str, &str)], args: &[&str]| {
        let variables = [&[("HF_ENDPOINT", endpoint)], more].concat();
        let output = soda(folder, &variables, args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let unreachable = unreachable_endpoint();
    run(&server.endpoint, &[], &[DRAW, &["toys/base", "--out", "first"]].concat());
    run(&unreachable, &[], &[DRAW, &["toys/base", "--out", "again"]].concat());
    let offline = [("HF_HUB_OFFLINE", "1")];
    run(&server.endpoint, &offline, &[DRAW, &["toys/base", "--out", "offline"]].concat());
    let read = |out: &str| std::fs::read(folder.join(out).join("seed0-00.png")).unwrap();
    assert!(read("first") == read("again") && read("first") == read("offline"));
    // The image's settings have the name of the model, not its commit.
    let text = String::from_utf8_lossy(&read("first")).into_owned();
    assert!(text.contains("Model: toys/base"));
    let said = run(&unreachable, &[], &["inspect", "toys/base"]);
    assert!(said.contains("UNet2DConditionModel") && said.contains("tensors"), "{said}");
    run(&unreachable, &[], &["convert", "--base", "toys/base", "--out", "copy"]);

    // A path that exists takes precedence.
    std::fs::create_dir_all(folder.join("toys/base")).unwrap();
    let output = soda(folder, &[("HF_ENDPOINT", &unreachable)], &[DRAW, &["toys/base"]].concat());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("model_index.json"), "{error}");
}

#[test]
fn a_name_without_a_model_is_reported_in_one_sentence() {
    let server = serve(toybox_repo());
    let (unreachable, here) = (unreachable_endpoint(), server.endpoint.as_str());
    let dir = tempfile::tempdir().unwrap();
    for (variables, name, named) in [
        (&[("HF_ENDPOINT", here)][..], "toys/other", "404"),
        (&[("HF_ENDPOINT", here)], "toys/closed", "HF_TOKEN"),
        (&[("HF_ENDPOINT", &unreachable)], "toys/base", "cannot be reached"),
        (&[("HF_ENDPOINT", here), ("HF_HUB_OFFLINE", "1")], "toys/base", "HF_HUB_OFFLINE"),
    ] {
        let output = soda(dir.path(), variables, &[DRAW, &[name]].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        let one_line = error.trim_end().lines().count() == 1;
        assert!(one_line && error.contains(named) && error.contains(name), "{error}");
    }
}
