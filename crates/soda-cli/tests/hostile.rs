//! Hostile input of the commands: each gives exit code 1 and one sentence, without a panic or a hang.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{program, toybox};

/// The longest time of a refusal. It is generous, since all tests share the machine.
const LONGEST: Duration = Duration::from_secs(60);

/// Runs a command that must fail, and returns its sentence.
#[track_caller]
fn refused(folder: &Path, args: &[&str]) -> String {
    let mut child = Command::new(program())
        .args(args)
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > LONGEST {
            child.kill().unwrap();
            panic!("{args:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    // A merge says first which tensors of the adapter it uses.
    assert_eq!(message.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{message}");
    message.lines().last().unwrap_or_default().to_owned()
}

fn train<'a>(base: &'a str, data: &'a str) -> Vec<&'a str> {
    let target = r"mid_block.*to_q\.weight$";
    let first = ["train", "--base", base, "--data", data, "--prompt", "a mug", "--steps", "1"];
    let more = ["--sample", "x", "--set", "samples.steps=1", "--batch-size", "1"];
    let last = ["--set", "validation.every=0", "--target", target, "--name", "a"];
    [&first[..], &more, &last].concat()
}

fn mkfifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn absurd_repeats_are_refused_by_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let base = toybox("base");
    let picture = toybox("subjects/castle_mug/00.png");
    for (name, repeats) in [("d", 1usize << 40), ("d", usize::MAX), ("9223372036854775807_x", 4)] {
        let data = folder.path().join("data").join(name);
        fs::create_dir_all(&data).unwrap();
        fs::copy(&picture, data.join("a.png")).unwrap();
        let line = format!(r#"{{"file_name":"a.png","text":"x","repeats":{repeats}}}"#);
        fs::write(data.join("metadata.jsonl"), line).unwrap();
        let given = if name == "d" { "data/d" } else { "data" };
        let error = refused(folder.path(), &train(base.to_str().unwrap(), given));
        assert!(error.contains("repeats") && error.contains(name), "{error}");
        fs::remove_dir_all(data).unwrap();
    }
}

#[test]
fn named_pipes_are_refused_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let base = toybox("base");
    mkfifo(&folder.path().join("f"));
    fs::create_dir(folder.path().join("d")).unwrap();
    mkfifo(&folder.path().join("d/a.png"));
    for args in [
        vec!["inspect", "f"],
        vec!["import", "f", "--base", base.to_str().unwrap(), "--out", "o.safetensors"],
        vec!["compare", "f", "--out", "o"],
        vec!["config", "check", "f"],
        train(base.to_str().unwrap(), "d"),
    ] {
        let error = refused(folder.path(), &args);
        assert!(error.contains("a named pipe, not a file"), "{args:?}: {error}");
    }
}

/// A sparse file costs its maker nothing.
#[test]
fn huge_files_are_refused_before_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let huge = |name: &str| {
        fs::File::create(folder.path().join(name)).unwrap().set_len(1 << 40).unwrap();
    };
    ["a.safetensors", "plan.toml"].into_iter().for_each(huge);
    for args in [
        &["inspect", "a.safetensors"][..],
        &["config", "check", "plan.toml"],
        &["compare", "plan.toml", "--out", "o"],
    ] {
        let error = refused(folder.path(), args);
        assert!(error.contains(args[args.len() - 1]) || error.contains("plan.toml"), "{error}");
    }
}

#[test]
fn shapes_that_overflow_are_refused_by_inspect() {
    let folder = tempfile::tempdir().unwrap();
    let tensor = |shape: &str| format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}"#);
    let file =
        |header: &str| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let unet = folder.path().join("m/unet");
    fs::create_dir_all(&unet).unwrap();
    fs::write(folder.path().join("m/model_index.json"), "{}").unwrap();
    let three = format!(r#"{{"a":{}}}"#, tensor("[4294967296,4294967296,4294967296]"));
    fs::write(unet.join("x.safetensors"), file(&three)).unwrap();
    let key = |index: usize| format!("unet.x.weight.soda.rotation.factors.{index}");
    let empty = tensor("[4294967296,0]");
    let factors = format!(r#"{{"{}":{empty},"{}":{empty}}}"#, key(0), key(1));
    fs::write(folder.path().join("a.safetensors"), file(&factors)).unwrap();
    for name in ["m", "a.safetensors"] {
        let error = refused(folder.path(), &["inspect", name]);
        assert!(error.contains("safetensors") && error.contains("shape"), "{error}");
    }
}

#[test]
fn a_merge_whose_weights_are_not_finite_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (base, data) = (toybox("base"), toybox("subjects/castle_mug"));
    let (base, data) = (base.to_str().unwrap(), data.to_str().unwrap());
    for (method, strength) in [("lora", "1e308"), ("kronecker", "1e30")] {
        let mut args = train(base, data);
        args.extend(["--method", method, "--runs", method]);
        let trained = common::soda(folder.path(), &args);
        assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
        let adapter = format!("{method}/a/adapter.safetensors");
        let merge = ["merge", "--base", base, "--adapter", &adapter, "--strength", strength];
        let error = refused(folder.path(), &[&merge[..], &["--out", "m"]].concat());
        if method == "lora" {
            assert!(error.contains("to_q.weight") && error.contains("strength"), "{error}");
        }
        assert!(!folder.path().join("m").exists());
        let left = fs::read_dir(folder.path()).unwrap().flatten();
        let hidden = left.filter(|entry| entry.file_name().to_string_lossy().starts_with('.'));
        assert_eq!(hidden.count(), 0);
    }
}
