//! A device that the build or the machine lacks is one sentence, whatever the command was to do. A plan
//! predicts the memory of a run, and blocks may be in host memory.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{program, soda, toybox};

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

fn paths() -> [String; 4] {
    let path = |name: &str| toybox(name).to_str().unwrap().to_owned();
    ["--base".into(), path("base"), "--data".into(), path("subjects/castle_mug")]
}

fn train(folder: &Path, more: &[&str]) -> String {
    let paths = paths();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let run = ["--steps", "4", "--sample", "a mug", "--method", "lora", "--device", "cpu"];
    let short = ["--set", "samples.steps=1", "--set", "validation.every=0"];
    let output = soda(folder, &[&["train"], &paths[..], &run, &short, more].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{more:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// The number before `MiB` on the line with `name`.
fn mib(printed: &str, name: &str) -> f64 {
    let line = printed.lines().find(|line| line.contains(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {printed}"));
    let words: Vec<&str> = line.split_whitespace().collect();
    let unit = words.iter().position(|word| *word == "MiB").unwrap();
    words[unit - 1].parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn a_plan_predicts_the_memory_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let larger = ["--set", "resolution=256", "--batch-size", "2"];
    let plan = train(folder.path(), &[&["--plan"], &larger[..]].concat());
    assert!(!folder.path().join("runs").exists(), "a plan writes no run");
    let run = train(folder.path(), &larger);
    let (predicted, taken) = (mib(&plan, "peak of the run"), mib(&run, "MiB of memory at most"));
    // What the allocator of a CPU keeps for each thread differs between two runs of one command.
    let ratio = predicted / taken;
    assert!((0.6..=1.6).contains(&ratio), "{predicted} MiB predicted, {taken} MiB taken");
    let parts = ["weights on the device", "adapter and", "optimizer", "activations of a step"];
    let sum: f64 = parts.iter().map(|part| mib(&plan, part)).sum();
    assert!((sum - mib(&plan, "peak of a step")).abs() <= 4.0, "{plan}");
    // The toy model has 1.5 million weights in its blocks at most; all of them leave the device.
    let moved = train(folder.path(), &["--plan", "--set", "offload=100"]);
    let here = mib(&plan, "weights on the device");
    assert!(mib(&moved, "weights in host memory") >= 1.0, "{moved}");
    assert!(mib(&moved, "weights on the device") < here, "{moved}");
}

#[test]
fn pictures_are_those_of_a_model_on_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let draw = |name: &str, more: &[&str]| {
        let base = toybox("base");
        let picture = ["generate", "--base", base.to_str().unwrap(), "--prompt", "a red mug"];
        let short = ["--steps", "3", "--device", "cpu", "--out", name];
        let output = soda(folder.path(), &[&picture[..], &short, more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        image::open(folder.path().join(name).join("seed0-00.png")).unwrap().into_rgb8()
    };
    let whole = draw("whole", &[]);
    let offloaded = draw("moved", &["--offload", "100", "--text-encoder-offload", "1"]);
    assert_eq!(whole.dimensions(), offloaded.dimensions());
    assert!(whole.pixels().any(|pixel| pixel != whole.get_pixel(0, 0)), "a picture of one colour");
    let largest = whole.as_raw().iter().zip(offloaded.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
    // Products are added in another order.
    assert!(largest.is_some_and(|off| off <= 1), "{largest:?}");
}
