//! Steps replayed from a CUDA graph equal the steps without a graph. The test is its own process: while a
//! device captures a graph, no other thread may use the device.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use burn::tensor::{Device, Tensor, TensorData};
use soda_kernels::has_vendor_blas;
use soda_models::pipeline::TokenIds;
use soda_train::{Batch, Prompts, TrainConfig, TrainerState};

use common::{settings, text_trainer, trainer};

/// Samples with different values in every step.
fn batch(step: usize, [samples, h, w]: [usize; 3], tokens: bool, device: &Device) -> Batch {
    let wave = |pace: f32, shape: &[usize]| {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * pace + step as f32).sin()).collect();
        TensorData::new(values, shape.to_vec())
    };
    let shape = [samples, 4, h, w];
    // Words of the vocabulary, the new word (787), and the padding.
    let id = |row: usize, at: usize| match at {
        0..5 => (97 * row + 31 * at + step) as i32 % 785,
        5 => 787,
        _ => 786,
    };
    let ids = (0..samples).flat_map(|row| (0..77).map(move |at| id(row, at)));
    let ids = TensorData::new(ids.collect::<Vec<_>>(), [samples, 77]);
    let first = Tensor::from_data(ids, device);
    let states = Tensor::<3>::from_data(wave(0.13, &[samples, 77, 160]), device);
    Batch {
        noisy: Tensor::from_data(wave(0.37, &shape), device),
        target: Tensor::from_data(wave(0.61, &shape), device),
        timesteps: Tensor::full([samples], (100 * step) as f64, device),
        prompts: match tokens {
            true => Prompts::Tokens { ids: TokenIds { first, second: None }, time_ids: None },
            false => states.into(),
        },
        weight: Tensor::full([samples], 1.0 / samples as f64, device),
        mask: None,
    }
}

fn run(config: &TrainConfig, with_graph: bool, device: &Device) -> (Vec<f32>, TrainerState) {
    let tokens = config.trains_text_encoder();
    let trainer = match tokens {
        true => {
            let word = config.trained_tokens().map(|_| Tensor::full([1, 160], 0.01, device));
            text_trainer(config, word, device)
        }
        false => trainer(config, device),
    };
    let mut trainer = if with_graph { trainer.with_graph() } else { trainer };
    // One batch has another size, and one has as many numbers in another shape: graphs of their own.
    let (upright, lying) = ([4, 16, 8], [4, 8, 16]);
    let shapes = [upright, upright, lying, [2, 16, 8], upright, lying, [2, 16, 8]];
    let mut loss =
        |(step, shape)| trainer.step_on(&batch(step, shape, tokens, device)).unwrap().loss;
    let losses = shapes.into_iter().enumerate().map(&mut loss).collect();
    (losses, trainer.state())
}

#[test]
fn a_replayed_step_equals_the_step() {
    let device = Device::default();
    if !has_vendor_blas(&Tensor::<1>::zeros([1], &device)) {
        // Only devices with a vendor BLAS capture graphs.
        return;
    }
    let text = ["text_encoder.stop_after=0.01", "tokens.words={'<mug>'='mug'}"];
    for more in [
        &["method=soda", "objective.loss=dco"][..],
        &["method=lora", "accumulation=2"],
        &["method=soda", "method.rotation.parametrization=cayley"],
        &["method=soda", "precision=bf16"],
        // Text encoders that are trained in the first three of 300 steps, and a word that is trained in all.
        &[&text[..], &["method=lora", "objective.loss=dco"]].concat(),
        &[&text[..], &["method=soda", "checkpointing=block"]].concat(),
    ] {
        let config = settings(&[&["batch_size=4"], more].concat());
        let ((losses, state), (expected, plain)) =
            (run(&config, true, &device), run(&config, false, &device));
        assert_eq!(losses, expected, "{more:?}");
        assert!(state == plain, "{more:?}");
    }
}
