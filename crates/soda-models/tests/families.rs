//! The networks of every model family against diffusers and transformers, on tiny random models.
//!
//! The fixtures are written by `docs/parity/models.py`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use common::{Fixture, check_gradients, check_tensor, value};
use soda_models::clip::{self, ClipTextConfig, HiddenLayer};
use soda_models::condition::{AddedCondition, Condition};
use soda_models::unet::UnetConfig;
use soda_models::vae::VaeConfig;
use soda_models::vit::{self, Dinov2Config};
use soda_models::{config, weights};

/// Two f32 implementations sum in different orders, and each of up to a hundred layers rounds by about 1e-7
/// of its largest value. A wrong epsilon, head count or order of blocks gives at least 1e-3.
const TOLERANCE: f32 = 5e-5;

/// Compares the outputs of a UNet, and the gradients of some weights of each kind.
fn unet(name: &str) {
    let fixture = Fixture::read(name);
    let dir = tempfile::tempdir().unwrap();
    let (config, file) = fixture.write_model(dir.path());
    let config: UnetConfig = config::read(&config).unwrap();
    let device = Device::default();
    let unet = weights::load(config.init(&device), &file).unwrap();
    let tape = device.autodiff();
    let unet = unet.train().set_require_grad(true);

    let mut loss = Tensor::<1>::zeros([1], &tape);
    for (index, [height, width]) in [[8, 8], [9, 13]].into_iter().enumerate() {
        let sample =
            value(&format!("sample.{index}"), [2, config.in_channels, height, width], &tape);
        let text =
            value(&format!("text.{index}"), [2, 7, config.cross_attention_dim.get(1)], &tape);
        let added = config.addition_embed_type.map(|_| AddedCondition {
            pooled: value(&format!("pooled.{index}"), [2, 20], &tape),
            time_ids: Tensor::from_floats(
                [[1024.0, 768.0, 0.0, 32.0, 1024.0, 1024.0], [64.0, 64.0, 5.0, 0.0, 8.0, 9.0]],
                &tape,
            ),
        });
        // One of the timesteps lies between two trained ones.
        let time = Tensor::<1>::from_floats([999.0, 10.5], &tape);
        let out = unet.forward(sample, time, Condition { text, lengths: None, added });
        loss = loss + (out.clone() * value(&format!("loss.{index}"), out.dims(), &tape)).sum();
        check_tensor(&format!("out.{index}"), out.inner(), &fixture, TOLERANCE);
    }
    check_gradients(&unet, &loss.backward(), &fixture, str::to_owned, TOLERANCE);
}

#[test]
fn unet_of_stable_diffusion_1_matches_diffusers() {
    unet("unet-sd15");
}

#[test]
fn unet_for_inpainting_matches_diffusers() {
    unet("unet-inpaint");
}

#[test]
fn unet_of_stable_diffusion_2_matches_diffusers() {
    unet("unet-sd21");
}

#[test]
fn unet_of_stable_diffusion_xl_matches_diffusers() {
    unet("unet-sdxl");
}

#[test]
fn unet_with_uneven_blocks_matches_diffusers() {
    unet("unet-uneven");
}

fn vae(name: &str) {
    let fixture = Fixture::read(name);
    let dir = tempfile::tempdir().unwrap();
    let (config, file) = fixture.write_model(dir.path());
    let config: VaeConfig = config::read(&config).unwrap();
    let device = Device::default();
    let plain = weights::load(config.init(&device), &file).unwrap();
    let vae = plain.clone().train().set_require_grad(true);
    let tape = device.clone().autodiff();

    let posterior = vae.encode(value("picture", [2, 3, 24, 36], &tape));
    let decoded = vae.decode(value("latents", [2, 4, 5, 7], &tape));
    let loss = (decoded.clone() * value("loss.decoded", decoded.dims(), &tape)).sum()
        + (posterior.mean.clone() * value("loss.mean", posterior.mean.dims(), &tape)).sum();
    check_gradients(&vae, &loss.backward(), &fixture, str::to_owned, TOLERANCE);
    check_tensor("mean", posterior.mean.inner(), &fixture, TOLERANCE);
    check_tensor("logvar", posterior.logvar.inner(), &fixture, TOLERANCE);
    check_tensor("decoded", decoded.inner(), &fixture, TOLERANCE);

    let tiling = config.tiling();
    let posterior = plain.encode_tiled(value("picture", [2, 3, 24, 36], &device), &tiling);
    check_tensor("tiled.mean", posterior.mean, &fixture, TOLERANCE);
    let decoded = plain.decode_tiled(value("latents", [2, 4, 5, 7], &device), &tiling);
    check_tensor("tiled.decoded", decoded, &fixture, TOLERANCE);
    // Latents that fit into a tile are not divided.
    let small = value("latents", [1, 4, 4, 4], &device);
    let (a, b) = (plain.decode_tiled(small.clone(), &tiling), plain.decode(small));
    assert_eq!(a.into_data(), b.into_data());
}

#[test]
fn autoencoders_match_diffusers() {
    vae("vae-sd");
    vae("vae-sdxl");
}

fn text_encoder(name: &str) {
    let fixture = Fixture::read(name);
    let dir = tempfile::tempdir().unwrap();
    let (config, file) = fixture.write_model(dir.path());
    let config: ClipTextConfig = config::read(&config).unwrap();
    let device = Device::default();
    let model = weights::load_renamed(config.init(&device), &file, clip::TEXT_KEY_RENAMES).unwrap();
    let model = model.train().set_require_grad(true);
    let tape = device.autodiff();
    let ids = TensorData::new(fixture.ints("ids"), [2, 8]);
    let ids = Tensor::<2, Int>::from_data(ids, &tape);

    let last = model.encode(ids.clone(), HiddenLayer { clip_skip: 0, final_norm: true });
    let loss = (last.hidden.clone() * value("loss.last", last.hidden.dims(), &tape)).sum()
        + (last.pooled.clone() * value("loss.pooled", last.pooled.dims(), &tape)).sum();
    let key = |key: &str| match key.split('.').next() {
        Some("text_model" | "text_projection") => key.to_owned(),
        _ => format!("text_model.{key}"),
    };
    check_gradients(&model, &loss.backward(), &fixture, key, TOLERANCE);
    check_tensor("last", last.hidden.inner(), &fixture, TOLERANCE);
    check_tensor("pooled", last.pooled.inner(), &fixture, TOLERANCE);
    check_tensor("last", model.forward(ids.clone()).inner(), &fixture, TOLERANCE);
    for skip in [1, 2] {
        for (name, normed) in [("hidden", false), ("skipped", true)] {
            let states =
                model.encode(ids.clone(), HiddenLayer { clip_skip: skip, final_norm: normed });
            check_tensor(&format!("{name}.{skip}"), states.hidden.inner(), &fixture, TOLERANCE);
            check_tensor("pooled", states.pooled.inner(), &fixture, TOLERANCE);
        }
    }
}

#[test]
fn text_encoders_match_transformers() {
    for name in ["text-sd15", "text-sd21", "text-bigg", "text-new-eos"] {
        text_encoder(name);
    }
}

#[test]
fn dinov2_matches_transformers() {
    dinov2("vit-dinov2");
}

#[test]
fn dinov2_with_registers_and_swiglu_matches_transformers() {
    dinov2("vit-dinov2-registers");
}

fn dinov2(name: &str) {
    let fixture = Fixture::read(name);
    let dir = tempfile::tempdir().unwrap();
    let (config, file) = fixture.write_model(dir.path());
    let config: Dinov2Config = config::read(&config).unwrap();
    let device = Device::default();
    let model = weights::load_renamed(config.init(&device), &file, vit::KEY_RENAMES).unwrap();
    let model = model.train().set_require_grad(true);
    let tape = device.autodiff();

    // Position embeddings are unchanged for the size of training, and interpolated to a larger and to a
    // smaller size.
    let mut loss = Tensor::<1>::zeros([1], &tape);
    for (index, [height, width]) in [[70, 70], [84, 112], [42, 56]].into_iter().enumerate() {
        let pixels = value(&format!("pixels.{index}"), [2, 3, height, width], &tape);
        let out = model.forward(pixels);
        loss = loss + (out.clone() * value(&format!("loss.{index}"), out.dims(), &tape)).sum();
        check_tensor(&format!("out.{index}"), out.inner(), &fixture, TOLERANCE);
    }
    let key = |key: &str| {
        let rename = |key: String, (from, to): &(&str, &str)| {
            regex::Regex::new(from).unwrap().replace(&key, *to).into_owned()
        };
        vit::KEY_RENAMES.iter().fold(key.to_owned(), rename)
    };
    check_gradients(&model, &loss.backward(), &fixture, key, TOLERANCE);
}
