//! The bundled transformer from the command line: drawing, training, and drawing with what was learnt.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;
#[path = "common/run.rs"]
mod run;

use std::path::Path;

use common::{soda, toybox};
use run::run;
use soda_pipeline::{AdapterFile, Component};
use soda_testing::max_abs;

fn base() -> String {
    let base = soda_testing::workspace_path("examples/toyflux/base");
    base.to_str().unwrap().to_owned()
}

/// The message of a command that fails.
fn refusal(folder: &Path, args: &[&str]) -> String {
    let output = soda(folder, args);
    assert!(!output.status.success(), "{args:?} is accepted");
    String::from_utf8(output.stderr).unwrap()
}

fn pixels(file: &Path) -> Vec<u8> {
    image::open(file).unwrap().into_rgb8().into_raw()
}

#[test]
fn a_transformer_is_trained_merged_and_draws() {
    let desk = tempfile::tempdir().unwrap();
    let (folder, base) = (desk.path(), base());
    let data = toybox("subjects/castle_mug");
    let train = |name: &str, options: &[&str]| {
        let common = [
            &["train", "--base", &base, "--data", data.to_str().unwrap(), "--name", name][..],
            &["--method", "lora", "--steps", "3", "--batch-size", "2", "--spectrum-lr", "1e-2"],
            &["--sample", "a sks mug", "--set", "samples.steps=2", "--set", "validation.every=1"],
        ];
        run(folder, &[&common.concat(), options].concat())
    };
    train("run", &["--set", "objective.logit_normal=[0.0, 1.0]"]);
    let adapter = folder.join("runs/run/adapter.safetensors");
    let file = AdapterFile::read(&adapter).unwrap();
    assert_eq!(file.adapters.keys().collect::<Vec<_>>(), [&Component::Transformer]);
    // Both double blocks have eight projections, and the six single blocks two.
    let part = &file.adapters[&Component::Transformer];
    assert_eq!(part.num_weights(), 28);
    let second = part.tensors.iter().filter(|(key, _)| key.ends_with(".b"));
    let learnt = max_abs(second.flat_map(|(_, data)| data.iter::<f32>().collect::<Vec<_>>()));
    assert!(learnt > 1e-3, "{learnt}");

    // The same settings give the same bits.
    train("again", &["--set", "objective.logit_normal=[0.0, 1.0]"]);
    let again = AdapterFile::read(&folder.join("runs/again/adapter.safetensors")).unwrap();
    assert_eq!(again.adapters[&Component::Transformer].tensors, part.tensors);
    // Other timesteps give another adapter.
    train("shifted", &["--set", "objective.timestep_shift=3"]);
    let other = AdapterFile::read(&folder.join("runs/shifted/adapter.safetensors")).unwrap();
    assert_ne!(other.adapters[&Component::Transformer].tensors, part.tensors);

    let draw = |base: &str, out: &str, options: &[&str]| {
        let common =
            ["generate", "--base", base, "--prompt", "a sks mug", "--steps", "2", "--out", out];
        run(folder, &[&common[..], options].concat());
        pixels(&folder.join(out).join("seed0-00.png"))
    };
    let adapter = adapter.to_str().unwrap();
    let adapted = draw(&base, "adapted", &["--adapter", adapter]);
    assert_eq!(adapted.len(), 64 * 64 * 3);
    assert_ne!(draw(&base, "plain", &[]), adapted);
    run(folder, &["merge", "--base", &base, "--adapter", adapter, "--out", "merged"]);
    assert_eq!(draw("merged", "of-merged", &[]), adapted);

    for command in [
        vec!["export", "--base", &base, "--adapter", adapter, "--out", "x.safetensors"],
        vec!["import", adapter, "--base", &base, "--out", "y.safetensors"],
    ] {
        let message = refusal(folder, &command);
        assert!(message.contains("transformer") && message.contains("soda merge"), "{message}");
    }
    for (setting, needle) in
        [("checkpointing=block", "checkpointing"), ("text_encoder.enabled=true", "text_encoder")]
    {
        let refused =
            ["train", "--base", &base, "--data", data.to_str().unwrap(), "--set", setting];
        let message = refusal(folder, &refused);
        assert!(message.contains(needle), "{message}");
    }
}
