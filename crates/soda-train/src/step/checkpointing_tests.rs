//! Gradient checkpointing changes no gradient: one tape for each stage gives the gradients of one tape.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use burn::module::Module as _;
use burn::tensor::{Device, Tensor, TensorData};
use serde_json::{Value, json};
use soda_adapters::{Method as _, PlanOptions};
use soda_models::condition::{AddedCondition, Condition};
use soda_models::noise::{generator, randn_with};
use soda_models::pipeline::{Denoiser, DenoiserConfig};
use soda_pipeline::TARGET_PRESETS;

use crate::config::{GradientCheckpointing, TrainConfig};
use crate::data::batch::Batch;
use crate::step::backward::DenoiserInputs;
use crate::step::loss::loss_and_gradients;
use crate::testing::{filled, norm, random, sdxl, settings};

/// The tolerance relative to the loss, or to the norm of the whole gradient. Only the gradients of the
/// readers of one tensor are added in another order, which rounds by 6e-8.
const TOLERANCE: f32 = 1e-6;

/// The tolerance relative to the norm of one tensor. Gradients of queries and keys are sums that nearly
/// cancel, and lose a digit.
const PER_TENSOR: f32 = 1e-5;

/// Sides that downsampling rounds, so that upsampling needs the sizes of the skip connections.
const SIDES: [usize; 2] = [10, 14];

/// Linear layers everywhere, which a mask by the timestep needs too.
const TARGETS: [&str; 3] = [
    "['attention']",
    r"['linear.*\.weight$', 'to_.*\.weight$']",
    r"['(up|single|context|layers\.1).*to_(q|out)\.weight$']",
];

fn sd15() -> Value {
    json!({
        "block_out_channels": [16, 32, 32],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "norm_num_groups": 8,
        "cross_attention_dim": 24,
        "attention_head_dim": 2,
    })
}

fn flux2() -> Value {
    json!({
        "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 24, "timestep_guidance_channels": 16,
        "axes_dims_rope": [4, 4, 4, 4], "guidance_embeds": false,
    })
}

fn z_image() -> Value {
    json!({
        "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2,
        "n_kv_heads": 2, "cap_feat_dim": 24, "axes_dims": [4, 4, 8],
    })
}

fn unet(architecture: Value) -> DenoiserConfig {
    DenoiserConfig::Unet(serde_json::from_value(architecture).unwrap())
}

/// A denoiser of each kind, with the targets of its test.
fn denoisers() -> [(&'static str, DenoiserConfig); 4] {
    let flux2 = DenoiserConfig::Flux2(serde_json::from_value(flux2()).unwrap());
    let z_image = DenoiserConfig::ZImage(serde_json::from_value(z_image()).unwrap());
    [("sd15", unet(sd15())), ("sdxl", unet(sdxl())), ("flux2", flux2), ("z-image", z_image)]
}

/// A denoiser with adapters away from their start: there the first factor of LoRA has no gradient.
fn adapted(architecture: &DenoiserConfig, config: &TrainConfig, device: &Device) -> Denoiser {
    let denoiser = match architecture.init(device) {
        Denoiser::Unet(unet) => filled(unet).into(),
        Denoiser::Flux2(transformer) => Denoiser::from(filled(transformer)),
        Denoiser::ZImage(transformer) => filled(transformer).into(),
    };
    let mut options = PlanOptions { presets: TARGET_PRESETS, ..PlanOptions::default() };
    let plan = config.method.plan_with(&config.targets, &denoiser, &mut options).unwrap();
    random(plan.attach(denoiser), 1.0, |_| 0.05)
}

/// Two images with different weights, as for prior preservation.
fn batch(architecture: &DenoiserConfig, device: &Device) -> Batch {
    let mut noise = generator(5, 0);
    let [height, width] = SIDES;
    let mut map = || randn_with(&mut noise, [2, 4, height, width], device);
    let (noisy, target) = (map(), map());
    let text: Tensor<4> = randn_with(&mut noise, [1, 2, 7, 24], device);
    let pooled: Tensor<4> = randn_with(&mut noise, [1, 1, 2, 12], device);
    let ids = TensorData::from([[64f32, 96.0, 0.0, 8.0, 80.0, 112.0]; 2]);
    let is_sdxl = architecture.as_unet().is_some_and(|unet| unet.addition_embed_type.is_some());
    let added = is_sdxl.then(|| AddedCondition {
        pooled: pooled.reshape([2, 12]),
        time_ids: Tensor::from_data(ids, device),
    });
    // Z-Image sees the tokens of a text alone, and pads both texts itself.
    let lengths = matches!(architecture, DenoiserConfig::ZImage(_)).then(|| vec![7, 3]);
    Batch {
        noisy,
        target,
        timesteps: Tensor::from_data(TensorData::from([20f32, 800.0]), device),
        prompts: Condition { text: text.reshape([2, 7, 24]), lengths, added }.into(),
        weight: Tensor::from_data(TensorData::from([0.5f32, 0.2]), device),
        mask: None,
    }
}

/// Compares `a` with the reference `b`, a part of a gradient of norm `whole`.
#[track_caller]
fn check<const D: usize>(what: &str, a: &Tensor<D>, b: &Tensor<D>, whole: f32) {
    let (distance, size) = (norm(a.clone() - b.clone()), norm(b.clone()));
    assert!(size > 0.0, "{what} is zero");
    assert!(distance <= TOLERANCE * whole, "{what}: {:e} of the whole gradient", distance / whole);
    assert!(distance <= PER_TENSOR * size, "{what}: {:e}", distance / size);
}

/// Targets in all stages, in some stages, and in layers that the time embedding passes through.
#[test]
fn one_tape_for_each_stage_gives_the_gradients_of_one_tape() {
    let device = Device::default();
    for (name, architecture) in denoisers() {
        let batch = batch(&architecture, &device);
        for method in ["method=soda", "method=lora", "method=t-lora"] {
            for loss in ["objective.loss=mse", "objective.loss=dco"] {
                for targets in TARGETS {
                    let targets = format!("targets={targets}");
                    let case = format!("{name} {method} {loss} {targets}");
                    let all = [method, loss, &targets, "objective.dco_beta=10"];
                    let plain = settings(&all);
                    let denoiser = adapted(&architecture, &plain, &device);
                    let block = TrainConfig {
                        checkpointing: GradientCheckpointing::Block,
                        ..plain.clone()
                    };
                    let networks = denoiser.into();
                    let (expected, plain) = loss_and_gradients(&networks, &batch, &plain, 1.0);
                    let (loss, block) = loss_and_gradients(&networks, &batch, &block, 1.0);
                    assert!((loss - expected).abs() <= TOLERANCE * expected.abs(), "{case}");
                    let paths = [&plain, &block]
                        .map(|g| g.iter().map(|(path, _)| path).collect::<Vec<_>>());
                    assert!(!paths[0].is_empty(), "{case}");
                    assert_eq!(paths[0], paths[1], "{case}");
                    let all = plain.iter().map(|(_, grad)| grad.clone()).collect();
                    let whole = norm(Tensor::<1>::cat(all, 0));
                    for (path, expected) in plain.iter() {
                        let found = block.get(path).unwrap();
                        check(&format!("{case} {path}"), found, expected, whole);
                    }
                }
            }
        }
    }
}

/// At the timestep 1000 a mask leaves one direction of LoRA's, with one tape and with one for each stage. A
/// denoiser that does not tell its timesteps would leave all of them.
#[test]
fn adapters_in_a_denoiser_know_the_timesteps() {
    let device = Device::default();
    for (name, architecture) in denoisers() {
        let mut batch = batch(&architecture, &device);
        batch.timesteps = batch.timesteps.ones_like().mul_scalar(1000.0);
        for checkpointing in ["checkpointing=none", "checkpointing=block"] {
            let config = settings(&["method=t-lora", "method.rank=3", checkpointing]);
            let networks = adapted(&architecture, &config, &device).into();
            let (_, grads) = loss_and_gradients(&networks, &batch, &config, 1.0);
            let of_b = grads.iter().filter(|(path, _)| path.ends_with(".b"));
            let mut found = 0;
            for (path, grad) in of_b {
                let grad: Vec<f32> = grad.clone().into_data().iter().collect();
                let (first, others) = grad.split_at(grad.len() / 3);
                assert!(first.iter().any(|g| *g != 0.0), "{name} {path}");
                assert!(others.iter().all(|g| *g == 0.0), "{name} {checkpointing} {path}");
                found += 1;
            }
            assert!(found > 0, "{name}");
        }
    }
}

/// Training a text encoder continues from the gradient by the condition.
#[test]
fn the_gradient_by_the_condition_is_the_same() {
    let device = Device::default();
    for (_, architecture) in denoisers() {
        let batch = batch(&architecture, &device);
        let denoiser = adapted(&architecture, &settings(&["method=lora"]), &device);
        let condition = batch.prompts.clone().encoded().unwrap();
        let [plain, block] =
            [GradientCheckpointing::None, GradientCheckpointing::Block].map(|checkpointing| {
                let inputs = DenoiserInputs {
                    noisy: batch.noisy.clone(),
                    timesteps: batch.timesteps.clone(),
                    condition: condition.clone(),
                    wants_condition_gradient: true,
                };
                let found = checkpointing
                    .backward(&denoiser, inputs, |prediction| prediction.square().mean());
                found.condition.unwrap()
            });
        let whole = norm(plain.text.clone());
        check("text", &block.text, &plain.text, whole);
        assert_eq!(plain.pooled.is_some(), condition.added.is_some());
        if let Some(pooled) = plain.pooled {
            check("pooled", &block.pooled.unwrap(), &pooled, norm(pooled.clone()));
        }
    }
}

/// Without adapters there is a loss, but no gradient to compute.
#[test]
fn a_frozen_network_has_a_loss_and_no_gradients() {
    let device = Device::default();
    for (_, architecture) in denoisers() {
        let batch = batch(&architecture, &device);
        let config = settings(&["checkpointing=block"]);
        let denoiser = architecture.init(&device).no_grad();
        let (loss, found) = loss_and_gradients(&denoiser.into(), &batch, &config, 1.0);
        assert!(loss.is_finite() && found.is_empty());
    }
}
