//! The pipelines of every model family against diffusers: text to image and image to image.
//!
//! The fixtures are written by `docs/parity/pipelines.py`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::tensor::{Device, Tensor};
use common::{Fixture, check, uniform, write_pipeline};
use image::RgbImage;
use serde::Deserialize;
use soda_models::pipeline::{GenerateConfig, InitImage, Pipeline};

/// Guidance multiplies the error of each of five steps, about 1e-6, by its scale and feeds it into the next
/// step.
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
    write_pipeline(&fixture, dir.path());
    let device = Device::default();
    let pipeline = Pipeline::load(dir.path(), &device).unwrap();
    let request: Request = serde_json::from_str(&fixture.metadata("request")).unwrap();
    let noise: Tensor<4> = fixture.tensor("noise", &device);
    let [_, _, height, width] = noise.dims().map(|side| 4 * side);
    let config = GenerateConfig {
        prompts: request.prompts,
        negative_prompt: request.negative_prompt,
        steps: request.steps,
        guidance_scale: request.guidance_scale,
        clip_skip: request.clip_skip,
        ..GenerateConfig::default()
    };

    let mut steps = Vec::new();
    let latents = pipeline
        .denoise(&config, noise.clone(), &mut |latents| steps.push(latents.clone()))
        .unwrap();
    check_steps("text.steps", &steps, &fixture);
    let images: Vec<f32> = pipeline.decode(latents).into_data().iter::<f32>().collect();
    check("text.pictures", &images, &fixture.floats("text.pictures").1, TOLERANCE);

    let pixels = uniform("picture", height * width * 3);
    let pixels = pixels.into_iter().map(|u| ((u + 1.0) * 127.5) as u8).collect();
    let image = RgbImage::from_raw(width as u32, height as u32, pixels).unwrap();
    let init_image = Some(InitImage { image, strength: request.strength });
    let mut steps = Vec::new();
    let config = GenerateConfig { init_image, ..config };
    pipeline.denoise(&config, noise, &mut |latents| steps.push(latents.clone())).unwrap();
    check_steps("image.steps", &steps, &fixture);

    // A saved and reloaded pipeline generates the same images.
    let copy = dir.path().join("copy");
    pipeline.save(&copy).unwrap();
    let again = Pipeline::load(&copy, &device).unwrap();
    let config = GenerateConfig { steps: 1, init_image: None, ..config };
    let generate = |pipeline: &Pipeline| pipeline.generate(&config, &mut |_, _| {}).unwrap();
    assert_eq!(generate(&again), generate(&pipeline));
}

#[test]
fn pipeline_of_stable_diffusion_1_matches_diffusers() {
    family("sd15");
}

#[test]
fn pipeline_of_stable_diffusion_2_matches_diffusers() {
    family("sd21");
}

#[test]
fn pipeline_of_stable_diffusion_xl_matches_diffusers() {
    family("sdxl");
}
