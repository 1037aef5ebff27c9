//! A run that is killed at any moment and resumed gives the bits of an uninterrupted run.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use burn::tensor::TensorData;
use soda_pipeline::AdapterFile;
use soda_train::Checkpoint;

const STEPS: usize = 12;
const MANY_STEPS: usize = 120;
/// The number of steps between two checkpoints.
const EVERY: usize = 2;

fn soda(folder: &Path) -> Command {
    let mut command = Command::new(common::program());
    command.current_dir(folder);
    command
}

/// A run with every feature that has state: text encoders trained for some steps, EMA, warm-up, gradient
/// accumulation, prior preservation, shards and gradient checkpointing.
fn train(folder: &Path, name: &str, steps: usize) -> Command {
    let toybox = soda_testing::workspace_path("examples/toybox");
    let mut command = soda(folder);
    command.args(["train", "--name", name, "--sample", "a mug", "--batch-size", "2"]);
    command.args(["--steps", &steps.to_string(), "--target", r"mid_block.*to_q\.weight$"]);
    command.arg("--base").arg(toybox.join("base"));
    command.arg("--data").arg(toybox.join("subjects/castle_mug"));
    for setting in [
        "shards=2",
        "checkpointing=block",
        "accumulation=2",
        "samples.steps=1",
        r"text_encoder.targets=['layers\.1\..*q_proj\.weight$']",
        "text_encoder.learning_rate=1e-2",
        "text_encoder.stop_after=0.75",
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
    command.arg("--set").arg(format!("checkpoints.every={EVERY}"));
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
    // A file that is still being written has another extension.
    let is_complete = |path: &PathBuf| path.extension().is_some_and(|name| name == "safetensors");
    files.map(|file| file.path()).filter(is_complete).collect()
}

#[test]
fn a_killed_and_resumed_run_gives_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let straight = train(folder, "straight", STEPS).output().unwrap();
    assert!(straight.status.success(), "{}", message(&straight));

    let run = folder.join("runs/killed");
    let mut child = train(folder, "killed", STEPS).spawn().unwrap();
    // The run may be in a step, in a write, or finished.
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
    // The lines are a header, the base model and the steps.
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
    assert!(adapter("killed").tensors().eq(adapter("straight").tensors()));
    assert!(!run.join("checkpoints").exists(), "a finished run keeps no checkpoints");

    let again = soda(folder).args(["train", "--resume", "runs/killed"]).output().unwrap();
    assert!(message(&again).contains("is finished"), "{}", message(&again));
}

/// `shards` alone decides in which order sums are made, so that a run may go on on another machine.
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut results = Vec::new();
    for threads in ["1", "2", "3", "5"] {
        let mut command = train(folder, threads, 5);
        let output = command.env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(output.status.success(), "{}", message(&output));
        let run = folder.join("runs").join(threads);
        let adapter: AdapterFile = AdapterFile::read(&run.join("adapter.safetensors")).unwrap();
        results.push((std::fs::read_to_string(run.join("loss.csv")).unwrap(), adapter));
    }
    for (losses, adapter) in &results[1..] {
        assert_eq!(losses, &results[0].0);
        assert!(adapter.tensors().eq(results[0].1.tensors()));
    }
}

/// The steps of such a run would be of two runs: the first ones on one base model or with one learning rate,
/// the others with another.
#[test]
fn a_run_goes_on_with_its_own_base_and_settings_only() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut child = train(folder, "killed", MANY_STEPS).spawn().unwrap();
    let run = folder.join("runs/killed");
    while checkpoints(&run).is_empty() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let config = std::fs::read_to_string(run.join("config.toml")).unwrap();
    let resumed = |from: &str, to: &str| {
        let changed = config.replacen(from, to, 1);
        assert_ne!(changed, config, "{from}");
        std::fs::write(run.join("config.toml"), changed).unwrap();
        let output = soda(folder).args(["train", "--resume", "runs/killed"]).output().unwrap();
        assert!(!output.status.success(), "{from} -> {to} is accepted");
        message(&output)
    };
    let said = resumed("min_snr_gamma = 5.0", "min_snr_gamma = 4.0");
    assert!(said.contains("`objective.min_snr_gamma` = 5.0"), "{said}");

    let toybox = soda_testing::workspace_path("examples/toybox/base");
    let other = folder.join("other");
    copy(&toybox, &other);
    let schedule = other.join("scheduler/scheduler_config.json");
    let text = std::fs::read_to_string(&schedule).unwrap();
    let changed = text.replacen("\"beta_end\": 0.012", "\"beta_end\": 0.011", 1);
    assert_ne!(changed, text);
    std::fs::write(&schedule, changed).unwrap();
    let base = std::path::absolute(&toybox).unwrap();
    let said = resumed(base.to_str().unwrap(), other.to_str().unwrap());
    assert!(said.contains("`scheduler` of the base model"), "{said}");
    std::fs::write(&schedule, text).unwrap();
    // A weight that no adapter is on.
    let weights = other.join("unet/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let middle = bytes.len() / 4 * 2;
    bytes[middle] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let said = resumed(base.to_str().unwrap(), other.to_str().unwrap());
    assert!(said.contains("`unet` of the base model"), "{said}");
}

/// Copies a folder, and what is in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            std::fs::write(to, std::fs::read(&path).unwrap()).unwrap();
        }
    }
}

/// `cargo test --workspace --test resume -- --ignored`: kills ten processes at random moments after a
/// checkpoint.
///
/// No complete checkpoint is ever lost or damaged. At most the steps since the last one are repeated, and
/// the result has the bits of an uninterrupted run.
#[test]
#[ignore = "takes minutes"]
#[allow(clippy::print_stdout, reason = "says where it is, and the seed to repeat it with")]
fn ten_kills_lose_at_most_one_checkpoint_interval_each() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let straight = train(folder, "straight", MANY_STEPS).output().unwrap();
    assert!(straight.status.success(), "{}", message(&straight));

    let run = folder.join("runs/killed");
    let newest = || {
        let newest = Checkpoint::newest(&run.join("checkpoints"), |error| panic!("{error}"));
        newest.unwrap().map_or(0, |checkpoint| checkpoint.state.step)
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut random = now.as_nanos() as u64;
    println!("seed {random}");
    let mut child = train(folder, "killed", MANY_STEPS).spawn().unwrap();
    for kill in 1..=10 {
        let before = newest();
        while newest() == before {
            assert!(child.try_wait().unwrap().is_none(), "the run finished before kill {kill}");
            std::thread::sleep(Duration::from_millis(5));
        }
        // A step takes tenths of a second. The kill falls in one of the next steps or in a write.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_millis((random >> 33) % 1000));
        let seen = newest();
        child.kill().unwrap();
        child.wait().unwrap();
        let kept = newest();
        println!("kill {kill}: seen {seen}, kept {kept}");
        assert!(kept >= seen && kept % EVERY == 0);
        child = soda(folder).args(["train", "--resume", "runs/killed"]).spawn().unwrap();
    }
    assert!(child.wait().unwrap().success());
    let losses = |name: &str| {
        std::fs::read_to_string(folder.join("runs").join(name).join("loss.csv")).unwrap()
    };
    assert_eq!(losses("killed"), losses("straight"));
}

/// Another program asks a run for samples and for its adapter. The result keeps its bits.
#[test]
fn samples_and_the_adapter_are_there_when_a_file_asks_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let straight = train(folder, "straight", STEPS).output().unwrap();
    assert!(straight.status.success(), "{}", message(&straight));
    let mut child = train(folder, "asked", STEPS).stderr(Stdio::null()).spawn().unwrap();
    let run = folder.join("runs/asked");
    let has = |name: &str| run.join(name).exists();
    // The files may be there before the first step.
    while !has("before.png") {
        assert!(child.try_wait().unwrap().is_none(), "the run ended early");
        std::thread::sleep(Duration::from_millis(5));
    }
    for name in ["sample", "save"] {
        std::fs::write(run.join(name), "").unwrap();
    }
    assert!(child.wait().unwrap().success());
    assert!(!has("sample") && !has("save"));
    let pictures = std::fs::read_dir(run.join("samples")).unwrap().flatten();
    let is_picture = |path: &PathBuf| path.extension().is_some_and(|name| name == "png");
    // The settings ask for two grids.
    assert!(pictures.map(|entry| entry.path()).filter(is_picture).count() > 2);
    let log = std::fs::read_to_string(run.join("events.jsonl")).unwrap();
    assert!(log.contains("wrote the adapter of step"), "{log}");
    assert!(adapter(folder, "asked").tensors().eq(adapter(folder, "straight").tensors()));
}

/// [`train`] at a rate at which the run overfits at once, with the same steps whatever their number is.
fn overfit(folder: &Path, name: &str, steps: usize, settings: &[&str]) -> Command {
    let mut command = train(folder, name, steps);
    let constant = ["optimizer.schedule=constant", "text_encoder.stop_after=1"];
    for setting in constant.iter().chain(&["optimizer.rotation_lr=0.05"]).chain(settings) {
        command.args(["--set", setting]);
    }
    command
}

/// At a rate at which the run overfits at once, the result is the adapter of the least loss. It has the bits
/// of a run that ends there, if the schedule does not depend on the number of steps.
#[test]
fn a_run_that_overfits_ends_early_with_its_best_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let train = |name: &str, steps: usize, more: &[&str]| {
        overfit(folder, name, steps, &[&["validation.every=1", "samples.every=0"], more].concat())
    };
    let early = ["validation.early_stopping_patience=2", "validation.load_best_model_at_end=true"];
    let output = train("early", 40, &early).output().unwrap();
    assert!(output.status.success(), "{}", message(&output));

    let losses = std::fs::read_to_string(folder.join("runs/early/loss.csv")).unwrap();
    let column =
        losses.lines().next().unwrap().split(',').position(|name| name == "validation_loss");
    let losses: Vec<f32> = losses
        .lines()
        .skip(2)
        .map(|line| line.split(',').nth(column.unwrap()).unwrap().parse().unwrap())
        .collect();
    let least = losses.iter().copied().fold(f32::INFINITY, |a, b| if b < a { b } else { a });
    let best = losses.iter().position(|loss| *loss == least).unwrap() + 1;
    assert!(losses.len() < 40, "the run did not overfit: {losses:?}");
    assert_eq!(losses.len(), best + 2, "{losses:?}");

    let early = adapter(folder, "early");
    assert_eq!(early.header.training["best_step"], best);
    assert!(train("plain", best, &[]).output().unwrap().status.success());
    assert_eq!(tensors(&early), tensors(&adapter(folder, "plain")));
    assert!(!folder.join("runs/early/checkpoints").exists());
}

fn adapter(folder: &Path, name: &str) -> AdapterFile {
    AdapterFile::read(&folder.join("runs").join(name).join("adapter.safetensors")).unwrap()
}

fn tensors(file: &AdapterFile) -> Vec<(String, TensorData)> {
    file.tensors().map(|(key, data)| (key, data.clone())).collect()
}

/// A rate at which pictures soon lose the prompt makes the first adapters the best by CLIP-T. The samples of
/// the last step count as well.
#[test]
fn a_run_ends_with_the_adapter_of_its_best_score() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let train = |name: &str, steps: usize, more: &[&str]| {
        let often = ["samples.every=1", "samples.steps=4"];
        let mut command = overfit(folder, name, steps, &[&often, more].concat());
        command.arg("--judges").arg(soda_testing::workspace_path("examples/toybox/eval"));
        command
    };
    let chosen = [
        "validation.metric_for_best_model=clip_t",
        "validation.load_best_model_at_end=true",
        "validation.early_stopping_patience=2",
    ];
    let output = train("chosen", 40, &chosen).output().unwrap();
    assert!(output.status.success(), "{}", message(&output));
    let scores = soda_train::read_step_scores(&folder.join("runs/chosen")).unwrap();
    let clip_t: Vec<f32> = scores.iter().map(|of| of.scores.clip_t).collect();
    let greatest = clip_t.iter().copied().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    let best = clip_t.iter().position(|score| *score == greatest).unwrap() + 1;
    assert!(clip_t.len() < 40, "the prompt was kept: {clip_t:?}");
    assert_eq!(clip_t.len(), best + 2, "{clip_t:?}");
    let chosen = adapter(folder, "chosen");
    assert_eq!(chosen.header.training["best_step"], best);
    assert!(train("plain", best, &[]).output().unwrap().status.success());
    assert_eq!(tensors(&chosen), tensors(&adapter(folder, "plain")));

    // Without judges there is no score.
    let mut blind = self::train(folder, "blind", 12);
    blind.args(["--set", "validation.metric_for_best_model=dino"]);
    blind.args(["--set", "validation.load_best_model_at_end=true"]);
    let output = blind.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", message(&output));
    assert!(message(&output).contains("set `judges`"), "{}", message(&output));
}
