//! Every family's pipeline against diffusers: from text, and from a picture.
//!
//! The fixtures are written by `docs/reference/pipelines.py`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use common::{Fixture, check, uniform, write_weights};
use image::RgbImage;
use serde::Deserialize;
use serde_json::Value;
use soda_models::pipeline::{GenerateConfig, Pipeline, Start};

/// Guidance multiplies the error of each of five steps, of about 1e-6, by its strength, and feeds
/// it into the next.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Request {
    prompts: Vec<String>,
    #[serde(default)]
    negative_prompt: String,
    #[serde(default)]
    clip_skip: usize,
    guidance_scale: f64,
    steps: usize,
    strength: f64,
}

/// Writes the model of a fixture as diffusers would.
fn write_model(fixture: &Fixture, dir: &Path) {
    let toybox = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/toybox/base"));
    let configs: BTreeMap<String, Value> =
        serde_json::from_str(&fixture.metadata("configs")).unwrap();
    let keys: BTreeMap<String, BTreeMap<String, Vec<usize>>> =
        serde_json::from_str(&fixture.metadata("keys")).unwrap();
    std::fs::write(dir.join("model_index.json"), fixture.metadata("index")).unwrap();
    for (part, config) in &configs {
        let dir = dir.join(part);
        std::fs::create_dir_all(&dir).unwrap();
        let name = if part == "scheduler" { "scheduler_config.json" } else { "config.json" };
        std::fs::write(dir.join(name), config.to_string()).unwrap();
        if let Some(keys) = keys.get(part) {
            let stem = if part.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
            write_weights(&dir.join(format!("{stem}.safetensors")), keys);
        }
    }
    for (part, pad) in [("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")] {
        let (from, to) = (toybox.join("tokenizer"), dir.join(part));
        std::fs::create_dir_all(&to).unwrap();
        std::fs::copy(from.join("tokenizer.json"), to.join("tokenizer.json")).unwrap();
        let config = std::fs::read_to_string(from.join("tokenizer_config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&config).unwrap();
        config["pad_token"] = pad.into();
        std::fs::write(to.join("tokenizer_config.json"), config.to_string()).unwrap();
    }
}

fn check_steps(what: &str, steps: &[Tensor<4>], fixture: &Fixture) {
    let (shape, theirs) = fixture.floats(what);
    assert_eq!(steps.len(), shape[0], "{what}");
    let size = theirs.len() / steps.len();
    for (i, ours) in steps.iter().enumerate() {
        let ours: Vec<f32> = ours.clone().into_data().iter::<f32>().collect();
        check(&format!("{what} {i}"), &ours, &theirs[i * size..(i + 1) * size], TOLERANCE);
    }
}

fn family(name: &str) {
    let fixture = Fixture::read(&format!("pipeline-{name}"));
    let dir = tempfile::tempdir().unwrap();
    write_model(&fixture, dir.path());
    let device = Device::default();
    let pipeline = Pipeline::load(dir.path(), &device).unwrap();
    let request: Request = serde_json::from_str(&fixture.metadata("request")).unwrap();
    let noise: Tensor<4> = fixture.tensor("noise", &device);
    let [_, _, height, width] = noise.dims().map(|side| 4 * side);
    let config = GenerateConfig {
        prompts: request.prompts,
        negative_prompt: request.negative_prompt,
        steps: request.steps,
        guidance: request.guidance_scale,
        clip_skip: request.clip_skip,
        ..GenerateConfig::default()
    };

    let mut steps = Vec::new();
    let latents = pipeline
        .denoise(&config, noise.clone(), &mut |latents| steps.push(latents.clone()))
        .unwrap();
    check_steps("text.steps", &steps, &fixture);
    let pictures: Vec<f32> = pipeline.decode(latents).into_data().iter::<f32>().collect();
    check("text.pictures", &pictures, &fixture.floats("text.pictures").1, TOLERANCE);

    let pixels = uniform("picture", height * width * 3);
    let pixels = pixels.into_iter().map(|u| ((u + 1.0) * 127.5) as u8).collect();
    let picture = RgbImage::from_raw(width as u32, height as u32, pixels).unwrap();
    let start = Some(Start { picture, strength: request.strength });
    let mut steps = Vec::new();
    let config = GenerateConfig { start, ..config };
    pipeline.denoise(&config, noise, &mut |latents| steps.push(latents.clone())).unwrap();
    check_steps("image.steps", &steps, &fixture);

    // What is written is the same model.
    let copy = dir.path().join("copy");
    pipeline.save(&copy).unwrap();
    let again = Pipeline::load(&copy, &device).unwrap();
    let config = GenerateConfig { steps: 1, start: None, ..config };
    let draw = |pipeline: &Pipeline| pipeline.generate(&config, &mut |_, _| {}).unwrap();
    assert_eq!(draw(&again), draw(&pipeline));
}

#[test]
fn stable_diffusion_1_draws_alike() {
    family("sd15");
}

#[test]
fn stable_diffusion_2_draws_alike() {
    family("sd21");
}

#[test]
fn stable_diffusion_xl_draws_alike() {
    family("sdxl");
}
