//! A tiny Z-Image model from the command line: pictures, training, merging, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../../../soda-models/tests/common/mod.rs"]
mod models;
#[path = "../common/run.rs"]
mod run;

use std::path::Path;

use common::{soda, toybox};
use models::{Fixture, write_z_image};
use run::run;
use serde_json::{Value, json};
use soda_pipeline::{AdapterFile, Component};
use soda_testing::max_abs;

/// A caption that fits into the 32 tokens of the smallest text, and one that does not.
const CAPTIONS: [&str; 2] = [
    "a sks mug",
    "a photo of a sks mug with a red striped ball, a yellow duck and a blue hat on a sunny beach",
];

/// Writes the model `base` and the pictures `data` with captions of different length.
fn desk() -> tempfile::TempDir {
    let desk = tempfile::tempdir().unwrap();
    let [base, data] = ["base", "data"].map(|name| desk.path().join(name));
    std::fs::create_dir(&base).unwrap();
    write_z_image(&Fixture::read("pipeline-z-image"), &base);
    std::fs::create_dir(&data).unwrap();
    for (index, caption) in CAPTIONS.into_iter().enumerate() {
        let picture = toybox("subjects/castle_mug").join(format!("0{index}.png"));
        std::fs::copy(picture, data.join(format!("{index}.png"))).unwrap();
        std::fs::write(data.join(format!("{index}.txt")), caption).unwrap();
    }
    desk
}

/// Makes the model one of the kind of Turbo, whose noise levels are shifted by 3.
fn make_turbo(folder: &Path) {
    let path = folder.join("base/scheduler/scheduler_config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["shift"] = json!(3.0);
    std::fs::write(path, config.to_string()).unwrap();
}

/// Trains two steps on both pictures at once. Returns the adapter, and what was said.
fn train(folder: &Path, method: &str, options: &[&str]) -> (AdapterFile, String) {
    let common = [
        &["train", "--base", "base", "--data", "data", "--name", method, "--method", method][..],
        &["--steps", "2", "--batch-size", "2", "--spectrum-lr", "1e-2", "--sample", CAPTIONS[0]],
        &["--set", "samples.steps=2", "--set", "validation.every=1"],
    ];
    let said = run(folder, &[&common.concat(), options].concat());
    let file = folder.join("runs").join(method).join("adapter.safetensors");
    (AdapterFile::read(&file).unwrap(), said)
}

/// Draws a picture of both captions with the model `base`. Returns their pixels.
fn draw(folder: &Path, base: &str, options: &[&str], out: &str) -> Vec<u8> {
    let common = ["generate", "--base", base, "--steps", "2", "--out", out];
    let prompts = ["--prompt", CAPTIONS[0], "--prompt", CAPTIONS[1]];
    run(folder, &[&common[..], &prompts, options].concat());
    let pixels = |name| {
        let picture = image::open(folder.join(out).join(name)).unwrap().into_rgb8();
        picture.into_raw()
    };
    [pixels("seed0-00.png"), pixels("seed0-01.png")].concat()
}

#[test]
fn a_lora_is_trained_drawn_and_merged() {
    let desk = desk();
    let folder = desk.path();
    let (file, said) = train(folder, "lora", &["--target", "attention+ff"]);
    assert!(!said.contains("distilled"), "{said}");
    assert_eq!(file.adapters.keys().collect::<Vec<_>>(), [&Component::Transformer]);
    // One refiner of the image, one of the text and two common blocks have seven matrices each.
    let part = &file.adapters[&Component::Transformer];
    assert_eq!(part.num_weights(), 28);
    let of_text = |key: &String| key.starts_with("context_refiner.0.attention.to_q");
    assert!(part.tensors.keys().any(of_text), "{:?}", part.tensors.keys());
    let second = part.tensors.iter().filter(|(key, _)| key.ends_with(".b"));
    let learnt = max_abs(second.flat_map(|(_, data)| data.iter::<f32>().collect::<Vec<_>>()));
    assert!(learnt > 1e-3, "{learnt}");

    let size = ["--width", "40", "--height", "24"];
    let plain = draw(folder, "base", &size, "plain");
    assert_eq!(plain.len(), 2 * 40 * 24 * 3);
    let adapter = ["--adapter", "runs/lora/adapter.safetensors"];
    let adapted = draw(folder, "base", &[&size[..], &adapter].concat(), "adapted");
    assert_ne!(adapted, plain);
    let merge = ["merge", "--base", "base", "--out", "merged"];
    run(folder, &[&merge[..], &adapter].concat());
    assert_eq!(draw(folder, "merged", &size, "again"), adapted);
}

#[test]
fn the_spectrum_and_the_rotation_of_soda_are_trained() {
    let desk = desk();
    let folder = desk.path();
    let (file, _) = train(folder, "soda", &[]);
    let part = &file.adapters[&Component::Transformer];
    assert_eq!(part.num_weights(), 16);
    let shifts = part.tensors.iter().filter(|(key, _)| key.ends_with("spectrum.delta"));
    let learnt = max_abs(shifts.flat_map(|(_, data)| data.iter::<f32>().collect::<Vec<_>>()));
    assert!(learnt > 1e-3, "{learnt}");
}

/// Turbo is distilled: it draws without guidance by default, and a run warns of it.
#[test]
fn turbo_draws_without_guidance_and_warns_of_training() {
    let desk = desk();
    let folder = desk.path();
    make_turbo(folder);
    let plain = draw(folder, "base", &[], "plain");
    assert_eq!(draw(folder, "base", &["--guidance", "0"], "off"), plain);
    assert_ne!(draw(folder, "base", &["--guidance", "1"], "on"), plain);
    let (_, said) = train(folder, "lora", &["--set", "samples.guidance=0"]);
    assert!(said.contains("distilled"), "{said}");
}

#[test]
fn what_a_transformer_lacks_is_refused() {
    let desk = desk();
    let folder = desk.path();
    let refused = |args: &[&str]| {
        let output = soda(folder, args);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let size = ["generate", "--base", "base", "--prompt", "a", "--width", "36"];
    let message = refused(&size);
    assert!(message.contains("multiples of 8"), "{message}");
}

/// The transformer goes into a file of the original names and back, and draws the same.
#[test]
fn the_transformer_travels_as_a_single_file() {
    let desk = desk();
    let folder = desk.path();
    let size = ["--width", "40", "--height", "24"];
    let plain = draw(folder, "base", &size, "plain");
    run(folder, &["convert", "--base", "base", "--out", "x.safetensors"]);
    let file = Fixture::open(&folder.join("x.safetensors"));
    let (shape, _) = file.floats("layers.1.attention.qkv.weight");
    assert_eq!(shape, [72, 24]);
    let said = run(folder, &["inspect", "x.safetensors"]);
    assert!(said.contains("weights of one network: transformer, for Z-Image"), "{said}");
    // The directory that gives the other networks needs no transformer.
    let weights = folder.join("base/transformer/diffusion_pytorch_model.safetensors");
    let ours = folder.join("ours.safetensors");
    std::fs::rename(weights, &ours).unwrap();
    let convert = ["convert", "--base", "x.safetensors", "--out", "again"];
    run(folder, &[&convert[..], &["--config", "base"]].concat());
    let again = folder.join("again/transformer/diffusion_pytorch_model.safetensors");
    let [ours, again] = [&ours, &again].map(|file| Fixture::open(file));
    assert_eq!(again.names(""), ours.names(""));
    for name in ours.names("") {
        assert_eq!(again.floats(&name), ours.floats(&name), "{name}");
    }
    assert_eq!(draw(folder, "again", &size, "drawn"), plain);
}

/// A trained adapter goes out in every format, and comes back as the same adapter.
#[test]
fn adapters_travel_in_and_out() {
    let desk = desk();
    let folder = desk.path();
    train(folder, "lora", &["--target", "attention+ff"]);
    // The weights of the transformer after a merge.
    let merge = |adapter: &str, out: &str| -> Vec<f32> {
        run(folder, &["merge", "--base", "base", "--adapter", adapter, "--out", out]);
        let file = folder.join(out).join("transformer/diffusion_pytorch_model.safetensors");
        let file = Fixture::open(&file);
        file.names("").iter().flat_map(|name| file.floats(name).1).collect()
    };
    let (adapter, base) = ("runs/lora/adapter.safetensors", ["--base", "base"]);
    let ours = merge(adapter, "merged");
    for (format, said_of) in [
        ("kohya", "LoRA adapter in the names of kohya's sd-scripts, for Z-Image"),
        ("diffusers", "LoRA adapter in the names of diffusers, for Z-Image"),
        ("diff", "delta adapter in the names of kohya's sd-scripts, for Z-Image"),
        ("peft", "LoRA adapter in the names of PEFT, for Z-Image"),
    ] {
        let out = if format == "peft" { "peft" } else { &format!("{format}.safetensors") };
        let export = ["export", "--adapter", adapter, "--format", format, "--error", "0"];
        run(folder, &[&export[..], &base, &["--out", out]].concat());
        let said = run(folder, &["inspect", out]);
        assert!(said.contains(said_of) && said.contains("of the transformer"), "{said}");
        let again = format!("{format}.st");
        let said = run(folder, &[&["import", out, "--out", &again][..], &base].concat());
        assert!(said.contains("; 28 weights matched, 0 names left out"), "{said}");
        let error =
            soda_testing::relative_error(&merge(&again, &format!("{format}-merged")), &ours);
        assert!(error < 1e-6, "{format}: {error:.1e}");
    }
}
