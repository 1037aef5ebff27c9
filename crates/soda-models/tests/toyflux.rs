//! The bundled rectified-flow model against diffusers, on vectors that diffusers computed in f32.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::PathBuf;

use burn::tensor::{Device, Tensor};
use common::{Fixture, check_tensor, value};
use soda_models::flux2::{Flux2Config, Flux2Transformer};
use soda_models::vae::{Vae, VaeConfig};
use soda_models::{config, weights};

/// As for the other bundled model: two f32 implementations of one network sum in different orders. A wrong
/// epsilon, a swapped gate or a rotation of the wrong pairs gives at least 1e-3.
const TOLERANCE: f32 = 2e-5;

fn base() -> PathBuf {
    soda_testing::workspace_path("examples/toyflux/base")
}

fn reference() -> Fixture {
    let folder = soda_testing::workspace_path("examples/toyflux/reference");
    Fixture::open(&folder.join("reference.safetensors"))
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn transformer(device: &Device) -> Flux2Transformer {
    let dir = base().join("transformer");
    let config: Flux2Config = config::read(&dir.join("config.json")).unwrap();
    weights::load(config.init(device), &dir.join("diffusion_pytorch_model.safetensors")).unwrap()
}

fn autoencoder(device: &Device) -> Vae {
    let dir = base().join("vae");
    let config: VaeConfig = config::read(&dir.join("config.json")).unwrap();
    assert_eq!((config.pixels_per_patch(), config.patch_channels()), (8, 32));
    weights::load(config.init(device), &dir.join("diffusion_pytorch_model.safetensors")).unwrap()
}

/// Latents `[b, c, h, w]` as tokens, `[b, h w, c]`.
fn packed(latents: Tensor<4>) -> Tensor<3> {
    latents.flatten::<3>(2, 3).swap_dims(1, 2)
}

#[test]
fn the_transformer_predicts_the_same_velocity() {
    let (device, reference) = (Device::default(), reference());
    let transformer = transformer(&device);
    let latents: Tensor<4> = reference.tensor("latents", &device);
    let text: Tensor<3> = reference.tensor("prompt_embeds", &device);
    for time in ["1.0", "0.7", "0.25", "0.02"] {
        let name = format!("velocity.{time}");
        let timestep = Tensor::<1>::full([6], 1000.0 * time.parse::<f64>().unwrap(), &device);
        let velocity = transformer.forward(latents.clone(), timestep, text.clone());
        let (shape, theirs) = reference.floats(&name);
        let ours = packed(velocity);
        assert_eq!(ours.dims().to_vec(), shape);
        common::check(&name, &values(ours), &theirs, TOLERANCE);
    }
}

/// Latents that are not square, heads that are not a power of two, axes of different widths, one word.
#[test]
fn uneven_sizes_match() {
    let (device, fixture) = (Device::default(), Fixture::read("flux2-uneven"));
    let dir = tempfile::tempdir().unwrap();
    let (config, file) = fixture.write_model(dir.path());
    let config: Flux2Config = config::read(&config).unwrap();
    let transformer = weights::load(config.init(&device), &file).unwrap();
    for (index, [height, width, words]) in [[3, 5, 7], [4, 1, 1]].into_iter().enumerate() {
        let latents = value(&format!("sample.{index}"), [2, 12, height, width], &device);
        let text = value(&format!("text.{index}"), [2, words, 10], &device);
        let time = Tensor::<1>::from_floats([1000.0, 10.5], &device);
        let out = transformer.forward(latents, time, text);
        check_tensor(&format!("out.{index}"), out, &fixture, TOLERANCE);
    }
}

#[test]
fn the_autoencoder_matches_diffusers() {
    let (device, reference) = (Device::default(), reference());
    let vae = autoencoder(&device);
    let check = |name: &str, ours: Tensor<4>| {
        check_tensor(name, ours, &reference, TOLERANCE);
    };
    let posterior = vae.encode(reference.tensor("vae.picture", &device));
    check("vae.mean", posterior.mode());
    check("vae.logvar", posterior.logvar.clone());
    check("vae.decoded", vae.decode(posterior.mode()));
    let normalized = vae.normalize(posterior.mode());
    check("vae.normalised", normalized.clone());
    let (back, mode) = (values(vae.denormalize(normalized)), values(posterior.mode()));
    common::check("the inverse", &back, &mode, 1e-6);
}
