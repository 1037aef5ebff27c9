//! The networks against diffusers, on vectors that it computed in f32 from the bundled weights.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use safetensors::SafeTensors;
use soda_models::{config, unet::UnetConfig, vae::VaeConfig, weights};

/// Two f32 implementations of one network sum in different orders, and each of some hundred
/// layers rounds by about 1e-7 of its largest value: 1e-5 in all. A wrong epsilon, a transposed
/// projection or a swapped gate is 1e-3 at the least.
const TOLERANCE: f32 = 2e-5;

fn toybox() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/toybox"))
}

/// The reference tensor `name`.
fn reference<const D: usize>(name: &str, device: &Device) -> Tensor<D> {
    let bytes = std::fs::read(toybox().join("reference/reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let values: Vec<f32> =
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    Tensor::from_data(TensorData::new(values, view.shape().to_vec()), device)
}

/// max |a - b| / max |b|.
fn error<const D: usize>(ours: Tensor<D>, theirs: Tensor<D>) -> f32 {
    assert_eq!(ours.dims(), theirs.dims());
    let largest: f32 = theirs.clone().abs().max().into_scalar();
    let difference: f32 = (ours - theirs).abs().max().into_scalar();
    difference / largest
}

fn check<const D: usize>(what: &str, ours: Tensor<D>, theirs: Tensor<D>) {
    let error = error(ours, theirs);
    assert!(error <= TOLERANCE, "{what}: relative error {error:e} exceeds {TOLERANCE:e}");
}

fn base(part: &str) -> PathBuf {
    toybox().join("base").join(part)
}

fn weights_in(dir: &Path) -> PathBuf {
    dir.join("diffusion_pytorch_model.safetensors")
}

#[test]
fn unet_predicts_as_diffusers() {
    let device = Device::default();
    let config: UnetConfig = config::read(&base("unet").join("config.json")).unwrap();
    let unet = weights::load(config.init(&device), &weights_in(&base("unet"))).unwrap();
    let timesteps = Tensor::<1, Int>::from_ints([999, 800, 600, 400, 200, 1], &device);
    let ours =
        unet.forward(reference("latents", &device), timesteps, reference("text_hidden", &device));
    check("unet.sample", ours, reference("unet.sample", &device));
}

#[test]
fn vae_encodes_and_decodes_as_diffusers() {
    let device = Device::default();
    let config: VaeConfig = config::read(&base("vae").join("config.json")).unwrap();
    let vae = weights::load(config.init(&device), &weights_in(&base("vae"))).unwrap();
    let pictures: Vec<Tensor<4>> =
        (0..6).map(|i| reference::<3>(&format!("image.{i}"), &device).unsqueeze::<4>()).collect();
    let latents = vae.encode(Tensor::cat(pictures, 0) * 2.0 - 1.0);
    check("vae.mean", latents.mean.clone(), reference("vae.mean", &device));
    check("vae.logvar", latents.logvar, reference("vae.logvar", &device));
    check("vae.decoded", vae.decode(latents.mean), reference("vae.decoded", &device));
}
