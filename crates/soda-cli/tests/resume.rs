//! A run that is killed at any moment and resumed is the run that never stopped.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use soda_adapters::AdapterFile;

const STEPS: usize = 12;

fn soda(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_soda"));
    command.current_dir(folder);
    command
}

/// Everything that a stop could disturb: average, warm-up, accumulation, prior, several threads.
fn train(folder: &Path, name: &str) -> Command {
    let toybox = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/toybox");
    let mut command = soda(folder);
    command.args(["train", "--name", name, "--sample", "a mug", "--batch-size", "2"]);
    command.args(["--steps", &STEPS.to_string(), "--target", r"mid_block.*to_q\.weight$"]);
    command.arg("--base").arg(toybox.join("base"));
    command.arg("--data").arg(toybox.join("subjects/castle_mug"));
    for setting in [
        "shards=2",
        "accumulation=2",
        "samples.steps=1",
        "checkpoints.every=2",
        "optimizer.ema_decay=0.9",
        "optimizer.warmup_steps=3",
        "objective.min_snr_gamma=5",
        "objective.noise_offset=0.05",
        "augment.flip=true",
        "validation.every=3",
        "validation.held_out=0.4",
        "samples.every=5",
        "augment.caption_dropout=0.2",
        "prior.prompt=a photo of a mug",
    ] {
        command.args(["--set", setting]);
    }
    command
        .arg("--set")
        .arg(format!("prior.data={}", toybox.join("subjects/garden_house").display()));
    command
}

fn message(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    files.map(|file| file.path()).filter(|path| path.extension().is_some()).collect()
}

#[test]
fn killed_and_resumed_is_the_same_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let straight = train(folder, "straight").output().unwrap();
    assert!(straight.status.success(), "{}", message(&straight));

    let run = folder.join("runs/killed");
    let mut child = train(folder, "killed").spawn().unwrap();
    // Wherever it is by then: in a step, in a write, or even done.
    for (killed, pause) in [0, 37, 91].into_iter().enumerate() {
        while checkpoints(&run).is_empty() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if killed == 0 {
            let second = soda(folder).args(["train", "--resume", "runs/killed"]).output().unwrap();
            assert!(message(&second).contains("another process"), "{}", message(&second));
        }
        std::thread::sleep(Duration::from_millis(pause));
        child.kill().unwrap();
        child.wait().unwrap();
        if run.join("report.html").exists() {
            break;
        }
        child = soda(folder).args(["train", "--resume", "runs/killed"]).spawn().unwrap();
    }
    child.wait().unwrap();

    let losses = |name: &str| {
        std::fs::read_to_string(folder.join("runs").join(name).join("loss.csv")).unwrap()
    };
    assert_eq!(losses("killed"), losses("straight"));
    // A head, the untouched network, and the steps; the validation before, after and every third step.
    assert_eq!(losses("killed").lines().count(), STEPS + 2);
    let validated = losses("killed").lines().filter(|line| !line.ends_with(',')).count() - 1;
    assert_eq!(validated, 1 + STEPS / 3);
    for file in ["samples/00000005.png", "samples/00000010.png"] {
        let bytes = |name: &str| std::fs::read(folder.join("runs").join(name).join(file)).unwrap();
        assert!(bytes("killed") == bytes("straight"), "{file}");
    }
    let adapter = |name: &str| -> AdapterFile {
        AdapterFile::read(&folder.join("runs").join(name).join("adapter.safetensors")).unwrap()
    };
    assert_eq!(adapter("killed").tensors, adapter("straight").tensors);
    assert!(!run.join("checkpoints").exists(), "checkpoints of a finished run stay");

    let again = soda(folder).args(["train", "--resume", "runs/killed"]).output().unwrap();
    assert!(message(&again).contains("is finished"), "{}", message(&again));
}
