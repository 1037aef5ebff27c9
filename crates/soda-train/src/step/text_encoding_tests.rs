//! Gradients of text encoders are those of one tape through encoders and denoiser.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use burn::module::Module as _;
use burn::tensor::{Device, Tensor, TensorData};
use soda_models::clip::ClipTextConfig;
use soda_models::noise::randn;
use soda_models::pipeline::{Networks, TokenIds};
use soda_models::unet::UnetConfig;
use soda_optim::AdapterGradients;
use soda_testing::max_abs;

use crate::config::{GradientCheckpointing, TrainConfig};
use crate::data::batch::Batch;
use crate::data::prompts::{Prompts, condition};
use crate::divided::Division;
use crate::step::adapted_networks::AdaptedNetworks;
use crate::step::calibration::Calibrations;
use crate::step::loss::loss_and_gradients;
use crate::testing::{filled, norm, sdxl, settings};

const SAMPLES: usize = 3;

/// A small denoiser with the architecture of SDXL, and its two text encoders.
fn networks(device: &Device) -> Networks {
    let unet: UnetConfig = serde_json::from_value(sdxl()).unwrap();
    let encoder = |width, projection_dim| ClipTextConfig {
        vocab_size: 30,
        hidden_size: width,
        intermediate_size: 2 * width,
        num_hidden_layers: 3,
        num_attention_heads: 2,
        max_position_embeddings: 6,
        eos_token_id: 29,
        projection_dim,
        ..ClipTextConfig::default()
    };
    filled(Networks {
        denoiser: unet.init(device).into(),
        text_encoder: Some(encoder(8, None).init(device)),
        text_encoder_2: Some(encoder(16, Some(12)).init(device)),
    })
}

fn batch(device: &Device) -> Batch {
    let ids = |shift: i32| {
        let id =
            |row: i32, at: i32| if at < 3 + row { (7 * row + 5 * at + shift) % 29 } else { 29 };
        let ids: Vec<i32> =
            (0..SAMPLES as i32).flat_map(|row| (0..6).map(move |at| id(row, at))).collect();
        Tensor::from_data(TensorData::new(ids, [SAMPLES, 6]), device)
    };
    let sizes = TensorData::from([[64f32, 96.0, 0.0, 8.0, 80.0, 112.0]; SAMPLES]);
    Batch {
        noisy: randn(0, 0, [SAMPLES, 4, 8, 8], device),
        target: randn(0, 1, [SAMPLES, 4, 8, 8], device),
        timesteps: Tensor::from_data(TensorData::from([20f32, 400.0, 800.0]), device),
        prompts: Prompts::Tokens {
            ids: TokenIds { first: ids(0), second: Some(ids(3)) },
            time_ids: Some(Tensor::from_data(sizes, device)),
        },
        weight: Tensor::from_data(TensorData::from([0.5f32, 0.3, 0.2]), device),
        mask: None,
    }
}

fn adapted(more: &[&str], device: &Device) -> (TrainConfig, Networks) {
    let common = ["method=svdiff", "text_encoder.targets=['text-attention+mlp']"];
    let config = settings(&[&common, more].concat());
    let networks = networks(device);
    let (_, plan) = AdaptedNetworks::plan(
        &config,
        &networks,
        &Calibrations::default(),
        None,
        Division::default(),
        &mut |_, _| (),
    )
    .unwrap();
    (config, plan.attach(networks))
}

/// The gradients through the condition are those of one tape through text encoders and denoiser, with and
/// without gradient checkpointing. The tolerance is 1e-5 of a tensor's norm, because sums are added in
/// another order.
#[test]
fn text_encoders_have_the_gradients_of_one_tape_through_everything() {
    let device = Device::default();
    let batch = batch(&device);
    let (config, networks) = adapted(&[], &device);
    let taped = networks.clone().train();
    let Prompts::Tokens { ids, time_ids } = &batch.prompts else { panic!("tokens") };
    let states = taped.encode_text(&ids.clone().autodiff()).unwrap();
    let on_tape = |x: Tensor<4>| Tensor::<4>::from_inner(x);
    let inputs = condition(states, time_ids.clone().map(Tensor::from_inner));
    let timesteps = Tensor::<1>::from_inner(batch.timesteps.clone());
    let prediction = taped.denoiser.forward(on_tape(batch.noisy.clone()), timesteps, inputs);
    let squares: Tensor<2> = (prediction - on_tape(batch.target.clone())).square().flatten(1, 3);
    let losses: Tensor<1> = squares.mean_dim(1).reshape([SAMPLES]);
    let loss = (losses * Tensor::from_inner(batch.weight.clone())).sum();
    let expected = AdapterGradients::collect(&taped, &loss.backward());
    let is_text = |path: &str| path.starts_with("text_encoder");
    let text_grads = expected.iter().filter(|(path, _)| is_text(path)).count();
    // The loss reaches two layers of the first encoder and all three of the second, through its pooled text.
    assert_eq!(text_grads, 2 * 6 + 3 * 6);
    for checkpointing in [GradientCheckpointing::None, GradientCheckpointing::Block] {
        let config = TrainConfig { checkpointing, ..config.clone() };
        let (value, found) = loss_and_gradients(&networks, &batch, &config, 1.0);
        assert!((value - loss.clone().into_scalar::<f32>()).abs() < 1e-5);
        for (path, expected) in expected.iter() {
            let found = found.get(path).unwrap().clone();
            let (distance, size) = (norm(found - expected.clone()), norm(expected.clone()));
            assert!(size > 0.0 && distance <= 1e-5 * size, "{path}: {distance:e} of {size:e}");
        }
        // A parameter that the loss does not reach has a gradient of zero or none.
        let mut others = found.iter().filter(|(path, _)| expected.get(path).is_none());
        assert!(others.all(|(_, grad)| norm(grad.clone()) == 0.0));
    }
}

/// The loss scale of f16 is a power of two; it multiplies the gradients of the text encoders exactly.
#[test]
fn a_loss_scale_multiplies_the_text_encoders_gradients_too() {
    let device = Device::default();
    let batch = batch(&device);
    let (config, networks) = adapted(&[], &device);
    let [(loss, plain), (same, scaled)] =
        [1.0, 1024.0].map(|scale| loss_and_gradients(&networks, &batch, &config, scale));
    assert_eq!(loss, same);
    let text: Vec<_> = plain.iter().filter(|(path, _)| path.starts_with("text_encoder")).collect();
    assert!(!text.is_empty());
    for (path, grad) in text {
        let expected = grad.clone().mul_scalar(1024.0);
        let distance = norm(scaled.get(path).unwrap().clone() - expected.clone());
        assert!(distance <= 1e-6 * norm(expected), "{path}: {distance:e}");
    }
}

/// The reference prediction of DCO uses frozen text encoders: with all adapters at their start, the loss is
/// log 2 for every sample.
#[test]
fn dco_measures_against_frozen_text_encoders() {
    let device = Device::default();
    let (config, networks) = adapted(&["objective.loss=dco"], &device);
    let shifted = soda_adapters::map_params(networks.clone(), |param| {
        let text = param.path.starts_with("text_encoder.") && param.path.contains(".adapter.");
        text.then(|| param.value().add_scalar(0.3))
    });
    let mse = settings(&["method=svdiff", "text_encoder.targets=['text-attention+mlp']"]);
    // The distance of each sample's loss from log 2, relative to β/2 times the squared error: the squared
    // error rounds in its last bits, and the loss has the slope β/2 there.
    let distance = |networks: &Networks| {
        let of_sample = |sample: usize| {
            let mut weight = [0.0; SAMPLES];
            weight[sample] = 1.0;
            let weight = Tensor::from_data(TensorData::from(weight), &device);
            let batch = Batch { weight, ..batch(&device) };
            let loss =
                loss_and_gradients(networks, &batch, &config, 1.0).0 - std::f32::consts::LN_2;
            let error = loss_and_gradients(networks, &batch, &mse, 1.0).0;
            loss.abs() / (0.5 * config.objective.dco_beta as f32 * error)
        };
        max_abs((0..SAMPLES).map(of_sample))
    };
    let (fresh, shifted) = (distance(&networks), distance(&shifted));
    assert!(fresh < 4.0 * f64::from(f32::EPSILON) && shifted > 1e-4, "{fresh:e}, {shifted:e}");
}
