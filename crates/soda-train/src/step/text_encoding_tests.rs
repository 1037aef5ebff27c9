//! Gradients of text encoders are those of one tape through encoders and denoiser.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use burn::module::Module as _;
use burn::tensor::{Device, Tensor, TensorData};
use soda_models::clip::text::ClipTextConfig;
use soda_models::noise::gaussian;
use soda_models::pipeline::{Networks, TextIds};
use soda_models::unet::UnetConfig;

use crate::config::{GradientCheckpointing, TrainConfig};
use crate::data::batch::Batch;
use crate::data::prompts::{Prompts, condition};
use crate::step::adapted_networks::Parts;
use crate::step::gradients::AdapterGradients;
use crate::step::loss::gradients;
use crate::testing::{filled, norm, sdxl, settings};

const SAMPLES: usize = 3;

/// A denoiser of SDXL's kind with both its text encoders.
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
        unet: unet.init(device),
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
        noisy: gaussian(0, 0, [SAMPLES, 4, 8, 8], device),
        target: gaussian(0, 1, [SAMPLES, 4, 8, 8], device),
        timesteps: Tensor::from_data(TensorData::from([20f32, 400.0, 800.0]), device),
        prompts: Prompts::Tokens {
            ids: TextIds { first: ids(0), second: Some(ids(3)) },
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
    let (_, plan) = Parts::plan(&config, &networks, None, &mut |_, _| ()).unwrap();
    (config, plan.attach(networks))
}

/// Through the condition and back, by blocks or not, the gradients are those of one tape through encoders and UNet:
/// 1e-5 of a tensor's own norm, since sums are added in another order.
#[test]
fn text_encoders_have_the_gradients_of_one_tape_through_everything() {
    let device = Device::default();
    let batch = batch(&device);
    let (config, networks) = adapted(&[], &device);
    let taped = networks.clone().train();
    let Prompts::Tokens { ids, time_ids } = &batch.prompts else { panic!("tokens") };
    let states = taped.read(&ids.clone().on_tape()).unwrap();
    let on_tape = |x: Tensor<4>| Tensor::<4>::from_inner(x);
    let told = condition(states, time_ids.clone().map(Tensor::from_inner));
    let at = Tensor::<1>::from_inner(batch.timesteps.clone());
    let prediction = taped.unet.forward(on_tape(batch.noisy.clone()), at, told);
    let squares: Tensor<2> = (prediction - on_tape(batch.target.clone())).square().flatten(1, 3);
    let each: Tensor<1> = squares.mean_dim(1).reshape([SAMPLES]);
    let loss = (each * Tensor::from_inner(batch.weight.clone())).sum();
    let expected = AdapterGradients::collect(&taped, &loss.backward());
    let texts = expected.0.keys().filter(|path| path.starts_with("text_encoder")).count();
    // Of two layers the first encoder, and of three the second, whose pooled text has seen the last.
    assert_eq!(texts, 2 * 6 + 3 * 6);
    for checkpointing in [GradientCheckpointing::None, GradientCheckpointing::Block] {
        let config = TrainConfig { checkpointing, ..config.clone() };
        let (value, found) = gradients(&networks, &batch, &config, 1.0);
        assert!((value - loss.clone().into_scalar::<f32>()).abs() < 1e-5);
        for (path, expected) in &expected.0 {
            let (distance, own) =
                (norm(found.0[path].clone() - expected.clone()), norm(expected.clone()));
            assert!(own > 0.0 && distance <= 1e-5 * own, "{path}: {distance:e} of {own:e}");
        }
        // What the loss cannot reach has a gradient of zero, or none.
        let rest = found.0.iter().filter(|(path, _)| !expected.0.contains_key(*path));
        assert!(rest.into_iter().all(|(_, grad)| norm(grad.clone()) == 0.0));
    }
}

/// f16's loss scale is a power of two, and goes through the condition into the text encoders as it is.
#[test]
fn a_loss_scale_multiplies_the_text_encoders_gradients_too() {
    let device = Device::default();
    let batch = batch(&device);
    let (config, networks) = adapted(&[], &device);
    let [(loss, plain), (same, scaled)] =
        [1.0, 1024.0].map(|scale| gradients(&networks, &batch, &config, scale));
    assert_eq!(loss, same);
    let text: Vec<_> =
        plain.0.iter().filter(|(path, _)| path.starts_with("text_encoder")).collect();
    assert!(!text.is_empty());
    for (path, grad) in text {
        let expected = grad.clone().mul_scalar(1024.0);
        let distance = norm(scaled.0[path].clone() - expected.clone());
        assert!(distance <= 1e-6 * norm(expected), "{path}: {distance:e}");
    }
}

/// The frozen prediction is that of the frozen text encoders too: where everything is at its start, DCO's loss is
/// log 2 for every sample.
#[test]
fn dco_measures_against_frozen_text_encoders() {
    let device = Device::default();
    let (config, networks) = adapted(&["objective.loss=dco"], &device);
    let shifted = soda_adapters::map_leaves(networks.clone(), |leaf| {
        let text = leaf.path.starts_with("text_encoder.") && leaf.path.contains(".adapter.");
        text.then(|| leaf.value().add_scalar(0.3))
    });
    let mse = settings(&["method=svdiff", "text_encoder.targets=['text-attention+mlp']"]);
    // How far each sample's loss is from log 2, beside its squared error, which rounds in its last bits; the loss
    // multiplies that by β/2, its slope there.
    let far = |networks: &Networks| {
        let of = |sample: usize| {
            let mut weight = [0.0; SAMPLES];
            weight[sample] = 1.0;
            let weight = Tensor::from_data(TensorData::from(weight), &device);
            let batch = Batch { weight, ..batch(&device) };
            let loss = gradients(networks, &batch, &config, 1.0).0 - std::f32::consts::LN_2;
            let error = gradients(networks, &batch, &mse, 1.0).0;
            loss.abs() / (0.5 * config.objective.dco_beta as f32 * error)
        };
        (0..SAMPLES).map(of).fold(0.0, f32::max)
    };
    let (fresh, shifted) = (far(&networks), far(&shifted));
    assert!(fresh < 4.0 * f32::EPSILON && shifted > 1e-4, "{fresh:e}, {shifted:e}");
}
