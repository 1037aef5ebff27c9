//! `soda evaluate`: the scores of a run, of two merged adapters, and of the base.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::path::Path;

use common::{soda, toybox};
use serde_json::Value;

/// Runs the program in `folder` with the bundled base and judges.
fn run(folder: &Path, verb: &str, more: &[&str]) -> Result<(), String> {
    let (base, judges) = (toybox("base"), toybox("eval"));
    let mut args = vec![verb, "--base", base.to_str().unwrap()];
    args.extend(["--judges", judges.to_str().unwrap()]);
    args.extend(more);
    let output = soda(folder, &args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

/// The prompt of the samples, and the settings of a short run.
const PROMPT: &str = "a photo of a sks mug on a beach";
const SHORT: [&str; 8] =
    ["--steps", "2", "--set", "samples.steps=2", "--spectrum-lr", "0.1", "--sample", PROMPT];
const ADAPTER: [&str; 2] = ["--adapter", "runs/mug/adapter.safetensors"];

/// Trains the short run `mug` with further options. Returns its scores.
fn train_mug(folder: &Path, more: &[&str]) -> Value {
    let mug = toybox("subjects/castle_mug");
    let what = ["--data", mug.to_str().unwrap(), "--name", "mug"];
    run(folder, "train", &[&SHORT[..], &what, more].concat()).unwrap();
    let trained = scores(folder, "runs/mug");
    assert_ne!(trained["before"], trained["after"]);
    trained
}

/// Draws the samples of the run `mug` with further options. Returns the scores.
fn evaluate_mug(folder: &Path, more: &[&str]) -> Value {
    let mug = toybox("subjects/castle_mug");
    let draw = ["--data", mug.to_str().unwrap(), "--steps", "2", "--guidance", "5"];
    let what = ["--prompt", PROMPT, "--out", "mug"];
    run(folder, "evaluate", &[&draw[..], &ADAPTER, &what, more].concat()).unwrap();
    scores(folder, "mug")["scores"].clone()
}

fn scores(folder: &Path, name: &str) -> Value {
    let text = std::fs::read_to_string(folder.join(name).join("scores.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn an_evaluation_has_the_scores_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (mug, style) = (toybox("subjects/castle_mug"), toybox("styles/mosaic"));
    let (mug, style) = (mug.to_str().unwrap(), style.to_str().unwrap());
    let train = |name: &str, data: &str, prompt: &str| {
        let short = ["--steps", "2", "--set", "samples.steps=2", "--rotation-lr", "0.1"];
        let short = [&short[..], &["--set", "samples.unrelated=[\"a blue boat\"]"]].concat();
        let what = ["--data", data, "--name", name, "--sample", prompt];
        run(folder, "train", &[&short[..], &what].concat()).unwrap();
    };
    // The data set has the true image of this prompt.
    let prompt = "a photo of a sks mug on a beach";
    train("mug", mug, prompt);
    train("mosaic", style, "a red car in zwx style");

    let adapter = "runs/mug/adapter.safetensors";
    let draw = ["--data", mug, "--steps", "2", "--prompt", prompt, "--unrelated", "a blue boat"];
    run(folder, "evaluate", &[&draw[..], &["--adapter", adapter, "--out", "mug"]].concat())
        .unwrap();
    run(folder, "evaluate", &[&draw[..], &["--out", "base"]].concat()).unwrap();
    let trained = scores(folder, "runs/mug");
    assert_ne!(trained["before"], trained["after"]);
    for by in ["drift", "drift_dino"] {
        let drift = |when: &str| trained[when][by].as_f64().unwrap();
        assert!(drift("before").abs() < 1e-6 && drift("after") > 1e-4, "{by}: {trained}");
    }
    assert_eq!(scores(folder, "mug")["scores"], trained["after"]);
    assert_eq!(scores(folder, "base")["scores"], trained["before"]);
    assert!(folder.join("base/samples.png").is_file());
    let same = |name: &str| {
        let read = |run: &str| std::fs::read(folder.join(run).join(name)).unwrap();
        assert_eq!(read("runs/mug"), read("mug"), "{name}");
    };
    same("unrelated.png");

    let prompt = "a sks mug in zwx style";
    let merged = ["--subject", adapter, "--style", "runs/mosaic/adapter.safetensors"];
    let merged = [&merged[..], &["--mode", "geodesic", "--weights", "0.8,0.6"]].concat();
    let draw = ["--data", mug, "--like", style, "--steps", "2", "--prompt", prompt];
    run(folder, "evaluate", &[&draw[..], &merged, &["--out", "both"]].concat()).unwrap();
    assert!(scores(folder, "both")["style_clip_i"].is_number());

    let again = run(folder, "evaluate", &[&draw[..], &["--out", "both"]].concat()).unwrap_err();
    assert!(again.contains("both exists"), "{again}");
    let none = run(folder, "evaluate", &["--data", "runs/mug", "--out", "no"]).unwrap_err();
    assert!(none.contains("give --prompt"), "{none}");
    assert!(!folder.join("no").exists());
}

/// Adapters stay attached to a quantized base, as in the run.
#[test]
fn an_evaluation_in_the_precisions_of_a_run_has_its_scores() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let small = ["--set", "precision=bf16", "--set", "encoder_precision=bf16"];
    let stored = ["--set", "base_precision=nf4", "--set", "offload=2"];
    let trained = train_mug(folder, &[&small[..], &stored].concat());
    // A processor adds in one order, wherever the blocks are; a GPU does only for the blocks of the run.
    let on_processor = std::env::var("BURN_DEVICE").map_or(true, |device| device == "flex");
    let offload = if on_processor { "1" } else { "2" };
    let small = ["--dtype", "bf16", "--base-precision", "nf4", "--offload", offload];
    assert_eq!(evaluate_mug(folder, &small), trained["after"]);
}

/// T-LoRA has no weight of its own: it stays attached to draw, with the scores of the run, and has no merge.
#[test]
fn an_adapter_with_a_mask_by_the_timestep_draws_and_is_not_merged() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let trained = train_mug(folder, &["--method", "t-lora"]);
    assert_eq!(evaluate_mug(folder, &[]), trained["after"]);

    let base = toybox("base");
    let kohya = ["--format", "kohya"];
    for (verb, out, more) in [("merge", "merged", &[][..]), ("export", "x.safetensors", &kohya)] {
        let args = [verb, "--base", base.to_str().unwrap(), "--out", out];
        let output = soda(folder, &[&args[..], &ADAPTER, more].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("has a `timestep_mask`"), "{said}");
        assert!(!folder.join(out).exists());
    }
}
