//! Steps repeated from a recording are the steps. A process of its own: while a device records, no other thread may use
//! it.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use burn::tensor::{Device, Tensor, TensorData};
use soda_kernels::has_library;
use soda_models::pipeline::TextIds;
use soda_train::{Batch, Prompts, TrainConfig, TrainerState};

use common::{settings, text_trainer, trainer};

/// Other numbers for every step.
fn batch(step: usize, samples: usize, tokens: bool, device: &Device) -> Batch {
    let wave = |pace: f32, shape: &[usize]| {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * pace + step as f32).sin()).collect();
        TensorData::new(values, shape.to_vec())
    };
    let shape = [samples, 4, 16, 16];
    // Words of the vocabulary, a new one, which is its 787th, and the padding.
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
            true => Prompts::Tokens { ids: TextIds { first, second: None }, time_ids: None },
            false => states.into(),
        },
        weight: Tensor::full([samples], 1.0 / samples as f64, device),
        mask: None,
    }
}

fn run(config: &TrainConfig, recorded: bool, device: &Device) -> (Vec<f32>, TrainerState) {
    let tokens = config.trains_text_encoder();
    let trainer = match tokens {
        true => {
            let word = config.trained_tokens().map(|_| Tensor::full([1, 160], 0.01, device));
            text_trainer(config, word, device)
        }
        false => trainer(config, device),
    };
    let mut trainer = if recorded { trainer.recording() } else { trainer };
    // One batch is of another size and goes past the recording.
    let batches = [(0, 4), (1, 4), (2, 4), (3, 2), (4, 4)];
    let losses = batches.map(|(step, samples)| {
        trainer.step_on(&batch(step, samples, tokens, device)).unwrap().loss
    });
    (losses.to_vec(), trainer.state())
}

#[test]
fn repeated_from_a_recording_a_step_is_the_same() {
    let device = Device::default();
    if !has_library(&Tensor::<1>::zeros([1], &device)) {
        // Nothing is recorded there.
        return;
    }
    let text = ["text_encoder.stop_after=0.01", "tokens.words={'<mug>'='mug'}"];
    for more in [
        &["method=soda", "objective.loss=dco"][..],
        &["method=lora", "accumulation=2"],
        &["method=soda", "method.rotation.parametrization=cayley"],
        &["method=soda", "precision=bf16"],
        // Text encoders that learn in the first three of 300 steps, and a word that goes on.
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
