//! Training of text encoders: from the command line to adapter files, images and the formats of other tools.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;
#[path = "../../soda-models/tests/common/mod.rs"]
mod models;
#[path = "common/run.rs"]
mod run;

use std::path::Path;

use burn::tensor::Device;
use common::{exported, toybox};
use models::{Fixture, write_pipeline};
use run::run;
use soda_models::pipeline::Pipeline;
use soda_pipeline::{AdapterFile, Component};
use soda_testing::{max_abs, max_abs_diff};

/// Trains three steps of LoRA on the denoiser and the text encoders of `base`.
fn train(folder: &Path, base: &str, options: &[&str]) -> AdapterFile {
    let data = toybox("subjects/castle_mug");
    let common = [
        &["train", "--base", base, "--data", data.to_str().unwrap(), "--name", "run"][..],
        &["--method", "lora", "--target", "attn2.*to_(k|v)\\.weight$", "--steps", "3"],
        &["--batch-size", "2", "--spectrum-lr", "1e-2", "--sample", "a sks mug"],
        &["--set", "samples.steps=2", "--set", "validation.every=1"],
    ];
    let said = run(folder, &[&common.concat(), options].concat());
    assert!(said.contains("captions are read in every step"), "{said}");
    AdapterFile::read(&folder.join("runs/run/adapter.safetensors")).unwrap()
}

/// The pixels of the image of a prompt.
fn draw(folder: &Path, base: &str, options: &[&str], out: &str) -> Vec<u8> {
    let common =
        ["generate", "--base", base, "--prompt", "a sks mug", "--steps", "2", "--out", out];
    run(folder, &[&common[..], options].concat());
    image::open(folder.join(out).join("seed0-00.png")).unwrap().into_rgb8().into_raw()
}

/// The largest absolute value of the LoRAs' second factors, which begin at zero.
fn largest_change(file: &AdapterFile, component: Component) -> f64 {
    let second = file.adapters[&component].tensors.iter().filter(|(key, _)| key.ends_with(".b"));
    max_abs(second.flat_map(|(_, data)| data.iter::<f32>().collect::<Vec<_>>()))
}

#[test]
fn a_trained_text_encoder_is_used_exported_and_imported() {
    let desk = tempfile::tempdir().unwrap();
    let (folder, base) = (desk.path(), toybox("base"));
    let base = base.to_str().unwrap();
    let file = train(folder, base, &["--text-encoder-lr", "2e-2"]);
    let parts: Vec<_> = file.adapters.keys().collect();
    assert_eq!(parts, [&Component::Unet, &Component::TextEncoder]);
    // The size of Adam's first steps is the learning rate, and that of the text encoder is twice the other.
    let ratio =
        largest_change(&file, Component::TextEncoder) / largest_change(&file, Component::Unet);
    assert!((1.5..=2.5).contains(&ratio), "{ratio}");
    let losses = std::fs::read_to_string(folder.join("runs/run/loss.csv")).unwrap();
    assert!(losses.starts_with("step,loss,grad_norm,rotation_lr,flat_lr,text_lr,"), "{losses}");

    let both = draw(folder, base, &["--adapter", "runs/run/adapter.safetensors"], "both");
    let mut alone = file.clone();
    alone.adapters.remove(&Component::TextEncoder);
    alone.write(&folder.join("alone.st")).unwrap();
    assert_ne!(draw(folder, base, &["--adapter", "alone.st"], "alone"), both);
    for format in ["kohya", "diffusers", "peft"] {
        let export = ["export", "--base", base, "--adapter", "runs/run/adapter.safetensors"];
        let out = &exported(format, format);
        run(folder, &[&export[..], &["--format", format, "--out", out]].concat());
        let again = format!("{format}.st");
        let said = run(folder, &["import", out, "--base", base, "--out", &again]);
        assert!(said.contains(", 0 names left out"), "{said}");
        let imported: AdapterFile = AdapterFile::read(&folder.join(&again)).unwrap();
        assert_eq!(imported.num_params(), file.num_params());
        // The factors are the same numbers with another scale, which rounds pixels differently.
        let drawn = draw(folder, base, &["--adapter", &again], &format!("of-{format}"));
        let error = max_abs_diff(&drawn, &both);
        assert!(error <= 1.0, "{format}: {error}");
    }
}

#[test]
fn both_text_encoders_of_sdxl_are_trained() {
    let desk = tempfile::tempdir().unwrap();
    let folder = desk.path();
    std::fs::create_dir(folder.join("base")).unwrap();
    write_pipeline(&Fixture::read("pipeline-sdxl"), &folder.join("base"));
    let file = train(folder, "base", &["--train-text-encoder", "--set", "checkpointing=block"]);
    let all = [Component::Unet, Component::TextEncoder, Component::TextEncoder2];
    assert_eq!(file.adapters.keys().copied().collect::<Vec<_>>(), all);
    for component in all {
        assert!(largest_change(&file, component) > 1e-3, "{component}");
    }
    let pipeline = Pipeline::load(&folder.join("base"), &Device::default()).unwrap();
    let plan = file.plan(&pipeline.networks()).unwrap();
    assert_eq!(
        plan.paths().len(),
        file.adapters.values().map(|part| part.num_weights()).sum::<usize>()
    );
    let plain = draw(folder, "base", &[], "plain");
    let adapted = draw(folder, "base", &["--adapter", "runs/run/adapter.safetensors"], "adapted");
    assert_ne!(plain, adapted);
}
