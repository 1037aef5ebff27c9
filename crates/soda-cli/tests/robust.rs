//! Failures around a run: full disk, missing permissions, images that vanish, losses that are NaN.
//!
//! Each gives a message of one sentence and keeps the files that exist.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

use common::{copy_castle_mug, program, soda, toybox};
use soda_pipeline::AdapterFile;

/// A short run on a copy of the data, with a checkpoint at every step.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_castle_mug(&folder.path().join("mug"));
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `soda train` in a shell after the command `before`.
    fn train(&self, before: &str, more: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{before} exec \"$0\" \"$@\""), program().to_str().unwrap()]);
        command.current_dir(self.folder.path()).args(["train", "--base"]).arg(toybox("base"));
        command.args(["--data", "mug", "--name", "a", "--sample", "a mug", "--batch-size", "1"]);
        command.args(["--target", r"mid_block.*to_q\.weight$", "--set", "samples.steps=1"]);
        command.args(["--set", "checkpoints.every=1", "--set", "validation.every=0"]);
        command.args(more);
        command
    }

    fn resume(&self) -> Output {
        soda(self.folder.path(), &["train", "--resume", "runs/a"])
    }

    /// Waits for the first checkpoint.
    fn wait(&self, child: &mut Child) {
        let checkpoint = |folder: &Path| {
            let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
            files.map(|file| file.path()).any(|path| path.extension().is_some())
        };
        while !checkpoint(&self.path("runs/a/checkpoints")) {
            assert!(child.try_wait().unwrap().is_none(), "the run ended before a checkpoint");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Asserts that the command failed without a panic, with one sentence that contains all `needles`.
#[track_caller]
fn refused(output: &Output, needles: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    assert!(!message.contains("panicked"), "{message}");
    for needle in needles {
        assert!(message.contains(needle), "`{needle}` is not in: {message}");
    }
}

/// A limit on the file size stands for a full disk: a write fails half-way in both cases.
#[test]
fn a_full_disk_is_reported_and_the_run_resumes_once_there_is_space() {
    let bench = Bench::new();
    // Room for the grid of samples, and not for the checkpoint of all attention layers.
    let room = "trap '' XFSZ; ulimit -f 32;";
    let output = bench.train(room, &["--steps", "2", "--target", "attention"]).output().unwrap();
    refused(&output, &["cannot write", "00000001.safetensors", "make room", "--resume"]);
    let left: Vec<_> = std::fs::read_dir(bench.path("runs/a/checkpoints")).unwrap().collect();
    assert!(left.is_empty(), "a partial file remains: {left:?}");
    assert!(bench.resume().status.success());
    assert!(bench.path("runs/a/report.html").is_file());
}

#[test]
fn a_read_only_folder_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let bench = Bench::new();
    std::fs::write(bench.path("file"), "").unwrap();
    let output = bench.train("", &["--steps", "1", "--runs", "file/runs"]).output().unwrap();
    refused(&output, &["cannot create file/runs", "--runs"]);

    let locked = bench.path("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o555)).unwrap();
    // Permissions do not restrict root.
    if std::fs::write(locked.join("trial"), "").is_err() {
        let output = bench.train("", &["--steps", "1", "--runs", "locked"]).output().unwrap();
        refused(&output, &["cannot create locked/a", "Permission denied", "--runs"]);
    }
}

/// Images are read before the first step, so that a run survives their removal. A resumed run needs the
/// same images.
#[test]
fn an_image_may_vanish_but_not_be_replaced() {
    let bench = Bench::new();
    let (image, elsewhere) = (bench.path("mug/02.png"), bench.path("elsewhere.png"));
    let mut child = bench.train("", &["--steps", "500"]).spawn().unwrap();
    bench.wait(&mut child);
    std::fs::rename(&image, &elsewhere).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "the run stopped when its image vanished");
    child.kill().unwrap();
    child.wait().unwrap();
    refused(&bench.resume(), &["metadata.jsonl", "no picture 02.png"]);
    std::fs::copy(bench.path("mug/01.png"), &image).unwrap();
    refused(&bench.resume(), &["mug are not those that the run began with", "put them back"]);
    std::fs::write(&image, "").unwrap();
    refused(&bench.resume(), &["02.png is an empty file"]);
    std::fs::rename(&elsewhere, &image).unwrap();
    let mut child = Command::new(program())
        .current_dir(bench.folder.path())
        .args(["train", "--resume", "runs/a"])
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(child.try_wait().unwrap().is_none(), "the run refused the same images");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_nan_loss_keeps_the_last_valid_adapter() {
    let bench = Bench::new();
    let wild = ["--steps", "9", "--method", "lora", "--spectrum-lr", "1e30"];
    let output = bench.train("", &wild).output().unwrap();
    refused(&output, &["at step ", "a/adapter.safetensors", "lower the learning rates"]);
    let kept: AdapterFile = AdapterFile::read(&bench.path("runs/a/adapter.safetensors")).unwrap();
    assert!(kept.num_tensors() > 0);
    assert!(kept.tensors().all(|(_, data)| data.iter::<f32>().all(f32::is_finite)));
    // The last valid adapter generates images.
    let base = toybox("base");
    let draw = ["generate", "--prompt", "a mug", "--steps", "1", "--out", "p", "--base"];
    let adapter = ["--adapter", "runs/a/adapter.safetensors"];
    let all = [&draw[..], &[base.to_str().unwrap()], &adapter].concat();
    let drawn = soda(bench.folder.path(), &all);
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
}

/// Sends a signal to a child.
fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
}

/// Waits for the end of the child for at most a minute, and returns its exit code.
fn end(child: &mut Child) -> Option<i32> {
    for _ in 0..600 {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    child.kill().unwrap();
    panic!("the command did not end");
}

/// Ctrl-C before the first step is heard between two denoising steps, and a message says so.
#[test]
fn ctrl_c_is_heard_while_samples_are_drawn() {
    use std::io::{BufRead as _, BufReader};
    use std::process::Stdio;
    let bench = Bench::new();
    // Later settings override earlier ones: 900 denoising steps.
    let slow = ["--steps", "2", "--set", "samples.steps=900", "--cache", "cache"];
    let mut child = bench.train("", &slow).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    // The run says what the cache gave just before it draws.
    assert!(lines.any(|line| line.starts_with("cache: ")));
    std::thread::sleep(Duration::from_millis(500));
    signal(&child, "-INT");
    let code = end(&mut child);
    let message = lines.collect::<Vec<_>>().join("\n");
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("stopping after this step"), "{message}");
    assert!(message.contains("--resume runs/a"), "{message}");
    assert!(!bench.path("runs/a/adapter.safetensors").exists(), "{message}");

    let config = bench.path("runs/a/config.toml");
    let text = std::fs::read_to_string(&config).unwrap().replace("steps = 900", "steps = 1");
    std::fs::write(&config, text).unwrap();
    let resumed = bench.resume();
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
}

/// A named pipe in the place of a configuration or a picture is refused, and nothing waits for it.
#[test]
fn a_named_pipe_is_refused() {
    let bench = Bench::new();
    for (pipe, args) in [
        ("pipe.toml", &["--config", "pipe.toml"][..]),
        ("mug/99.png", &["--steps", "1", "--prompt", "a mug"]),
    ] {
        let path = bench.path(pipe);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut child = bench.train("", args).stderr(std::process::Stdio::piped()).spawn().unwrap();
        end(&mut child);
        refused(&child.wait_with_output().unwrap(), &[pipe, "a named pipe"]);
    }
}

#[test]
fn a_full_disk_has_the_remedy_of_the_command() {
    let bench = Bench::new();
    let script = "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script, program().to_str().unwrap(), "generate", "--prompt", "x"])
        .args(["--steps", "1", "--out", "g", "--base"])
        .arg(toybox("base"))
        .current_dir(bench.folder.path())
        .output()
        .unwrap();
    refused(&output, &["cannot write g/seed0-00.png", "make room, and give the command again"]);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("--resume"));
}
