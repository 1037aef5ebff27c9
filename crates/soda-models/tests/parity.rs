//! The bundled model against diffusers, on vectors that diffusers computed in f32.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use safetensors::SafeTensors;
use soda_models::ModelError;
use soda_models::pipeline::{GenerateConfig, Pipeline};

/// Two f32 implementations of one network sum in different orders. Each of some hundred layers rounds by
/// about 1e-7 of its largest value, 1e-5 in all. A wrong epsilon, a transposed projection or a swapped gate
/// gives at least 1e-3.
const TOLERANCE: f64 = 2e-5;

fn toybox() -> PathBuf {
    soda_testing::workspace_path("examples/toybox")
}

/// Reads the reference tensor `name`.
fn reference<const D: usize>(name: &str, device: &Device) -> Tensor<D> {
    let bytes = std::fs::read(toybox().join("reference/reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let values: Vec<f32> =
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    Tensor::from_data(TensorData::new(values, view.shape().to_vec()), device)
}

/// Reads the token ids of the reference.
fn reference_ids() -> Vec<i64> {
    let bytes = std::fs::read(toybox().join("reference/reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = file.tensor("input_ids").unwrap();
    ids.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Reads the reference images in [0, 1], `[6, 3, 64, 64]`.
fn images(device: &Device) -> Tensor<4> {
    let image = |i| reference::<3>(&format!("image.{i}"), device).unsqueeze::<4>();
    Tensor::cat((0..6).map(image).collect(), 0)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// `max |a - b| / max |b|`, NaN if any value is NaN.
fn error<const D: usize>(ours: Tensor<D>, theirs: Tensor<D>) -> f64 {
    assert_eq!(ours.dims(), theirs.dims());
    soda_testing::relative_error(&values(ours), &values(theirs))
}

fn check<const D: usize>(what: &str, ours: Tensor<D>, theirs: Tensor<D>) {
    let error = error(ours, theirs);
    assert!(error <= TOLERANCE, "{what}: relative error {error:e} exceeds {TOLERANCE:e}");
}

fn pipeline(device: &Device) -> Pipeline {
    Pipeline::load(&toybox().join("base"), device).unwrap()
}

fn prompts() -> Vec<String> {
    let text = std::fs::read_to_string(toybox().join("reference/reference.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(json["prompts"].clone()).unwrap()
}

#[test]
fn prompts_give_the_same_token_ids_and_hidden_states() {
    let device = Device::default();
    let pipeline = pipeline(&device);
    let ids: Vec<i64> = prompts()
        .iter()
        .flat_map(|prompt| pipeline.text.token_ids(prompt).remove(0))
        .map(i64::from)
        .collect();
    assert_eq!(ids, reference_ids());
    let states = pipeline.encode_prompts(&prompts());
    check("text_hidden", states, reference("text_hidden", &device));
}

#[test]
fn the_unet_predicts_the_same_noise() {
    let device = Device::default();
    let ours = pipeline(&device).denoiser.forward(
        reference("latents", &device),
        Tensor::<1, Int>::from_ints([999, 800, 600, 400, 200, 1], &device),
        reference("text_hidden", &device),
    );
    check("unet.sample", ours, reference("unet.sample", &device));
}

#[test]
fn the_autoencoder_matches_diffusers() {
    let device = Device::default();
    let vae = pipeline(&device).vae;
    let images = images(&device);
    let latents = vae.encode(images * 2.0 - 1.0);
    check("vae.mean", latents.mode(), reference("vae.mean", &device));
    check("vae.logvar", latents.logvar.clone(), reference("vae.logvar", &device));
    check("vae.decoded", vae.decode(latents.mode()), reference("vae.decoded", &device));
}

/// Roundings of bf16, 2^-8 each, in some thirty layers.
#[test]
fn an_autoencoder_decodes_in_another_dtype_than_it_encodes() {
    let device = Device::default();
    if !device.supports_dtype(FloatDType::BF16) {
        return;
    }
    let (pipeline, images) = (pipeline(&device), images(&device) * 2.0 - 1.0);
    let expected = pipeline.vae.encode(images.clone()).mode();
    let vae = pipeline.with_decoder_in(FloatDType::BF16).vae;
    let latents = vae.encode(images).mode();
    assert_eq!(values(latents.clone()), values(expected), "the encoder is unchanged");
    let decoded = vae.decode(latents.cast(FloatDType::BF16));
    assert_eq!(decoded.dtype(), DType::BF16);
    let error = error(decoded.cast(FloatDType::F32), reference("vae.decoded", &device));
    assert!(1e-4 < error && error < 3e-2, "decoded in bf16: off by {error}");
}

/// 30 steps with guidance 5 feed each error into the next step, amplified. An error of 2e-5 for each step
/// becomes 1e-3 of a latent and half a grey level of a byte.
#[test]
fn thirty_steps_generate_the_same_images() {
    let device = Device::default();
    let pipeline = pipeline(&device);
    let request = GenerateConfig { prompts: prompts(), ..GenerateConfig::default() };
    let mut steps: Vec<Tensor<4>> = Vec::new();
    let latents = pipeline
        .denoise(&request, reference("latents", &device), &mut |latents| {
            steps.push(latents.clone().narrow(0, 0, 1));
        })
        .unwrap();

    let theirs = reference::<4>("steps.0", &device);
    assert_eq!(steps.len(), theirs.dims()[0]);
    for (i, ours) in steps.into_iter().enumerate() {
        let error = error(ours, theirs.clone().narrow(0, i, 1));
        assert!(error <= 1e-3, "step {i}: relative error {error:e}");
    }
    let (ours, theirs) = (values(pipeline.decode(latents)), values(images(&device)));
    let difference = soda_testing::max_abs_diff(&ours, &theirs);
    assert!(difference <= 2e-3, "images differ by {difference:e}");
}

/// A saved and reloaded model generates the same images.
#[test]
fn a_saved_model_is_the_same_model() {
    let device = Device::default();
    let pipeline = pipeline(&device);
    let dir = tempfile::TempDir::new().unwrap();
    let saved = dir.path().join("deep/model");
    pipeline.save(&saved).unwrap();
    let again = Pipeline::load(&saved, &device).unwrap();
    let request = GenerateConfig {
        prompts: prompts()[..2].to_vec(),
        steps: 2,
        seed: 3,
        ..GenerateConfig::default()
    };
    let generate = |pipeline: &Pipeline| pipeline.generate(&request, &mut |_, _| {}).unwrap();
    assert_eq!(generate(&again), generate(&pipeline));
    // A second save does not overwrite, and a save leaves no other files.
    assert!(matches!(pipeline.save(&saved), Err(ModelError::Io { .. })));
    assert_eq!(std::fs::read_dir(saved.parent().unwrap()).unwrap().count(), 1);
}

/// The noise of image `i` depends on seed and index, and not on the other images of the batch.
#[test]
fn an_image_depends_on_its_seed_and_index_only() {
    let device = Device::default();
    let pipeline = pipeline(&device);
    let generate = |prompts: Vec<String>| {
        let request = GenerateConfig { prompts, steps: 1, ..GenerateConfig::default() };
        let mut calls = Vec::new();
        let images =
            pipeline.generate(&request, &mut |done, total| calls.push((done, total))).unwrap();
        (images, calls)
    };
    // More prompts than fit into one batch.
    let many: Vec<String> = (0..18).map(|i| format!("a {i} ball")).collect();
    let (all, calls) = generate(many.clone());
    assert_eq!(calls, [(1, 2), (2, 2)]);
    let (first, _) = generate(many[..1].to_vec());
    let largest = all[0].iter().zip(first[0].iter()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(largest.unwrap() <= 1);
    let (repeated, _) = generate(vec![many[0].clone(); 2]);
    assert_ne!(repeated[0], repeated[1]);
}

#[test]
fn invalid_requests_are_refused_by_name() {
    let pipeline = pipeline(&Device::default());
    let prompts = prompts();
    for (request, name) in [
        (GenerateConfig { steps: 0, prompts: prompts.clone(), ..Default::default() }, "steps"),
        (GenerateConfig { steps: 1000, prompts: prompts.clone(), ..Default::default() }, "steps"),
        (GenerateConfig { guidance_scale: f64::NAN, prompts, ..Default::default() }, "guidance"),
    ] {
        let error = pipeline.generate(&request, &mut |_, _| {}).unwrap_err();
        assert!(matches!(error, ModelError::InvalidRequest { field, .. } if field == name));
    }
    let error = Pipeline::load(Path::new("no/such/model"), &Device::default()).unwrap_err();
    assert!(matches!(error, ModelError::Missing { .. }));
}
