//! Commands that are killed at any moment (SIGKILL) lose nothing, leave nothing half and nothing behind.
//!
//! The moments follow from a seed. `SODA_KILLS=250` kills each command so many times, and `SODA_KILL_SEED`
//! chooses other moments; by default a few kills show that the mechanism works:
//!
//! ```sh
//! SODA_KILLS=250 cargo test --workspace --test kills -- --nocapture
//! ```

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use soda_pipeline::AdapterFile;

/// A path in `examples/toybox`.
fn toybox(name: &str) -> PathBuf {
    soda_testing::workspace_path("examples/toybox").join(name)
}

/// A number of the environment.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Moments between 0 and 1 that follow from a seed.
struct Moments(u64);

impl Moments {
    fn new(command: u64) -> Self {
        Self(number("SODA_KILL_SEED", 18).wrapping_mul(1000).wrapping_add(command))
    }

    fn draw(&mut self) -> f64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1_u64 << 24) as f64
    }
}

fn soda(folder: &Path, args: &[String]) -> Command {
    let mut command = Command::new(common::program());
    command.args(args).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Runs a command to its end, and returns how long it took.
fn finish(folder: &Path, args: &[String]) -> Duration {
    let started = Instant::now();
    assert!(soda(folder, args).status().unwrap().success(), "{args:?}");
    started.elapsed()
}

/// Kills a command after a part of `whole`, unless it has ended.
fn kill_after(folder: &Path, args: &[String], wait: Duration) {
    let mut child = soda(folder, args).spawn().unwrap();
    std::thread::sleep(wait);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// All files below a folder with their content.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // An empty folder that was left behind counts as well.
                files.insert(path.strip_prefix(folder).unwrap().to_owned(), Vec::new());
                folders.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                files.insert(path.strip_prefix(folder).unwrap().to_owned(), bytes);
            }
        }
    }
    files
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

fn train_args(name: &str, steps: usize) -> Vec<String> {
    let steps = steps.to_string();
    let mut args = strings(&["train", "--name", name, "--sample", "a mug", "--batch-size", "1"]);
    args.extend(strings(&["--steps", &steps, "--target", r"mid_block.*to_q\.weight$"]));
    args.extend(strings(&["--set", "samples.steps=1", "--set", "checkpoints.every=1"]));
    args.extend(strings(&["--set", "shards=1"]));
    for (option, path) in [("--base", "base"), ("--data", "subjects/castle_mug")] {
        args.extend([option.to_owned(), toybox(path).display().to_string()]);
    }
    args
}

/// Every output that exists after a kill is whole. After the last run the folder has what a run that was
/// never killed gives, and nothing else.
#[test]
fn what_a_killed_command_leaves_is_whole_or_gone() {
    let home = tempfile::tempdir().unwrap();
    finish(home.path(), &train_args("a", 1));
    let adapter = home.path().join("runs/a/adapter.safetensors").display().to_string();
    let base = toybox("base").display().to_string();
    let commands = [
        strings(&["merge", "--base", &base, "--adapter", &adapter, "--out", "o", "--cache", "c"]),
        strings(&["convert", "--base", &base, "--out", "o", "--dtype", "bf16"]),
        strings(&[
            "export",
            "--base",
            &base,
            "--adapter",
            &adapter,
            "--format",
            "diff",
            "--out",
            "o",
        ]),
    ];
    for (index, args) in commands.iter().enumerate() {
        let straight = home.path().join(format!("straight-{index}"));
        let killed = home.path().join(format!("killed-{index}"));
        std::fs::create_dir_all(&straight).unwrap();
        std::fs::create_dir_all(&killed).unwrap();
        let whole = finish(&straight, args);
        let expected = tree(&straight);
        let mut moments = Moments::new(index as u64);
        for kill in 0..number("SODA_KILLS", 2) {
            kill_after(&killed, args, whole.mul_f64(moments.draw()));
            for (path, bytes) in tree(&killed) {
                if path
                    .components()
                    .any(|part| part.as_os_str().to_string_lossy().starts_with(".soda-"))
                {
                    continue;
                }
                assert!(expected.get(&path) == Some(&bytes), "kill {kill} of {args:?}: {path:?}");
            }
            let out = killed.join("o");
            let _ = std::fs::remove_dir_all(&out).or_else(|_| std::fs::remove_file(&out));
        }
        finish(&killed, args);
        let found = tree(&killed);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        assert!(found == expected, "{args:?} gave other bytes");
    }
}

/// A run is killed and goes on, under the same name if it had not begun, until it is finished.
#[test]
fn a_run_killed_at_any_moment_loses_nothing() {
    const STEPS: usize = 6;
    let home = tempfile::tempdir().unwrap();
    let whole = finish(home.path(), &train_args("straight", STEPS));
    let run = home.path().join("runs/killed");
    let resume = strings(&["train", "--resume", "runs/killed"]);
    let next = || match run.exists() {
        true => resume.clone(),
        false => train_args("killed", STEPS),
    };
    let mut moments = Moments::new(100);
    for _ in 0..number("SODA_KILLS", 3) {
        kill_after(home.path(), &next(), whole.mul_f64(moments.draw()));
        if run.join("report.html").exists() {
            std::fs::remove_dir_all(&run).unwrap();
        }
    }
    finish(home.path(), &next());
    let names = |name: &str| {
        let files = tree(&home.path().join("runs").join(name));
        files.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(names("killed"), names("straight"));
    assert_eq!(std::fs::read_dir(home.path().join("runs")).unwrap().count(), 2);
    let read =
        |name: &str, file: &str| std::fs::read(home.path().join("runs").join(name).join(file));
    for file in ["loss.csv", "samples.png"] {
        assert!(read("killed", file).unwrap() == read("straight", file).unwrap(), "{file}");
    }
    let adapter = |name: &str| -> AdapterFile {
        AdapterFile::read(&home.path().join("runs").join(name).join("adapter.safetensors")).unwrap()
    };
    assert!(adapter("killed").tensors().eq(adapter("straight").tensors()));
}
