//! Training steps on the bundled model: they agree with PyTorch for every number of threads, and a resumed
//! trainer equals one that never stopped.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use soda_adapters::{NamedParam, named_params};
use soda_kernels::matmul;
use soda_models::pipeline::Networks;
use soda_testing::max_abs;
use soda_train::{Trainer, TrainerState};

use common::{EMBEDDINGS, Fixture, TEXT, WORD, adapted_denoiser, settings, text_trainer, trainer};

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// Losses and parameters of six steps agree with PyTorch in double precision. The error of the parameters is
/// relative to the distance they moved: 5e-4 of it is far below the move of one step, and a wrong formula is
/// of order 1.
#[test]
fn six_steps_agree_with_pytorch() {
    let (fixture, device) = (Fixture::read(), Device::default());
    let cases = ["soda", "soda-qr", "svdiff", "lora"].map(|name| [(name, "mse"), (name, "dco")]);
    let text = [("soda-text", "mse"), ("soda-text", "dco"), ("lora-text", "mse")];
    let words = [("soda-words", "mse"), ("lora-words", "mse"), ("lora-words", "dco")];
    for (name, loss) in cases.into_iter().flatten().chain(text).chain(words) {
        let case = format!("{name}/{loss}");
        let with_text = name.ends_with("-text") || name == "soda-words";
        let with_word = name.ends_with("-words");
        let method = name.trim_end_matches("-text").trim_end_matches("-words");
        let (method_setting, loss_setting) =
            (format!("method={method}"), format!("objective.loss={loss}"));
        let mut all = vec![method_setting.as_str(), &loss_setting, "shards=2"];
        if method == "lora" {
            all.push("method.rank=4");
        }
        all.extend(TEXT.iter().filter(|_| with_text));
        all.extend(WORD.iter().filter(|_| with_word));
        let config = settings(&all);
        let start = fixture.under(&format!("{name}/start/"));
        let state = TrainerState { adapter: start.clone(), ..TrainerState::default() };
        let word =
            with_word.then(|| fixture.tensor(&format!("{name}/start/{EMBEDDINGS}"), &device));
        let mut trainer = match with_text || with_word {
            true => text_trainer(&config, word, &device),
            false => trainer(&config, &device),
        };
        trainer = trainer.restored(state).unwrap();
        for (step, expected) in fixture.0[&format!("{case}/losses")].1.iter().enumerate() {
            let batch = match (with_text, with_word) {
                (_, true) => fixture.tokens("word_ids", step, &device),
                (true, false) => fixture.tokens("ids", step, &device),
                (false, false) => fixture.batch(step, &device),
            };
            let found = trainer.step_on(&batch).unwrap().loss;
            let error = (found - expected).abs() / expected.abs().max(1e-2);
            assert!(error < 5e-4, "{case}, step {step}: {found} for {expected}");
        }
        let end = fixture.under(&format!("{case}/end/"));
        let state = trainer.state();
        let values = |state: &BTreeMap<String, TensorData>| -> Vec<f64> {
            end.keys().flat_map(|name| state[name].iter::<f64>().collect::<Vec<_>>()).collect()
        };
        let (start, end, found) = (values(&start), values(&end), values(&state.adapter));
        let distance = norm(end.iter().zip(&start).map(|(a, b)| a - b));
        let error = norm(end.iter().zip(&found).map(|(a, b)| a - b)) / distance;
        assert!(error < 5e-4, "{case}: {error:e} of the distance");
    }
}

/// Gradient accumulation and threads add in another order, which changes the rounding only.
#[test]
fn accumulation_and_threads_change_rounding_only() {
    let (fixture, device) = (Fixture::read(), Device::default());
    let gradient_step = |shards: &str, accumulation: &str| {
        // The loss of the second step depends on the move of the first.
        let config = settings(&[shards, accumulation]);
        let mut trainer = trainer(&config, &device);
        (0..2).map(|step| trainer.step_on(&fixture.batch(step, &device)).unwrap().loss).collect()
    };
    let whole: Vec<f32> = gradient_step("shards=1", "accumulation=1");
    for (shards, accumulation) in [("shards=2", "accumulation=1"), ("shards=7", "accumulation=3")] {
        let split: Vec<f32> = gradient_step(shards, accumulation);
        let again: Vec<f32> = gradient_step(shards, accumulation);
        assert_eq!(split, again, "{shards}, {accumulation}: not the same bits twice");
        for (part, whole) in split.iter().zip(&whole) {
            assert!((part - whole).abs() < 2e-5 * whole, "{shards}: {split:?} for {whole:?}");
        }
    }
}

#[test]
fn a_restored_trainer_continues_to_the_bit() {
    let (fixture, device) = (Fixture::read(), Device::default());
    let config = settings(&[
        "optimizer.ema_decay=0.9",
        "optimizer.warmup_steps=2",
        "shards=2",
        "checkpointing=block",
    ]);
    let mut straight = trainer(&config, &device);
    for step in 0..3 {
        straight.step_on(&fixture.batch(step, &device)).unwrap();
    }
    let mut resumed = trainer(&config, &device).restored(straight.state()).unwrap();
    for step in 3..6 {
        let losses = [&mut straight, &mut resumed]
            .map(|trainer| trainer.step_on(&fixture.batch(step, &device)).unwrap());
        assert_eq!(losses[0], losses[1]);
    }
    assert_eq!(straight.state(), resumed.state());
    assert!(
        !straight.state().average.is_empty()
            && straight.state().average != straight.state().adapter
    );

    let other = settings(&["method=lora"]);
    assert!(trainer(&other, &device).restored(straight.state()).is_none());
}

/// Text encoders and new words are trained for their share of the steps and then stay equal to the bit, while
/// the denoiser is trained to the end. A resumed run does the same.
#[test]
fn text_encoders_and_words_are_trained_for_their_share_of_the_steps() {
    let (fixture, device) = (Fixture::read(), Device::default());
    let rest = [
        "steps=5",
        "text_encoder.stop_after=0.5",
        "tokens.stop_after=0.25",
        "optimizer.ema_decay=0.9",
        "shards=2",
        "checkpointing=block",
    ];
    let config = settings(&[&TEXT[..], &WORD, &rest].concat());
    let part = |state: &TrainerState, word: bool| -> BTreeMap<String, TensorData> {
        let all = state.adapter.clone().into_iter();
        all.filter(|(path, _)| path.starts_with("text_encoder.") && word == (path == EMBEDDINGS))
            .collect()
    };
    let word = || Some(fixture.tensor(&format!("soda-words/start/{EMBEDDINGS}"), &device));
    let mut straight = text_trainer(&config, word(), &device);
    let step = |trainer: &mut Trainer<'_>, number| {
        trainer.step_on(&fixture.tokens("word_ids", number, &device)).unwrap()
    };
    step(&mut straight, 0);
    let mut resumed = text_trainer(&config, word(), &device).restored(straight.state()).unwrap();
    for number in 1..5 {
        let before = straight.state();
        let steps = [&mut straight, &mut resumed].map(|trainer| step(trainer, number));
        assert_eq!(steps[0], steps[1]);
        let after = straight.state();
        for (word, end, rate) in
            [(false, 3, steps[0].text_lr / 1e-3), (true, 2, steps[0].token_lr / 2e-3)]
        {
            let is_trained = number < end;
            assert_eq!(rate, if is_trained { 1.0 } else { 0.0 });
            assert!(!part(&before, word).is_empty());
            assert_eq!(part(&before, word) != part(&after, word), is_trained, "{word} {number}");
        }
        assert_ne!(before.adapter, after.adapter);
    }
    assert_eq!(straight.state(), resumed.state());
    // A run without text encoders has other parameters.
    let alone = settings(&[]);
    assert!(trainer(&alone, &device).restored(straight.state()).is_none());
}

#[test]
fn a_nan_loss_moves_no_parameter() {
    let (fixture, device) = (Fixture::read(), Device::default());
    let config = settings(&[]);
    let mut trainer = trainer(&config, &device);
    trainer.step_on(&fixture.batch(0, &device)).unwrap();
    let before = trainer.state();
    // Only the loss of the next step shows whether a move was finite. Until then the parameters before it
    // count.
    let first = named_params(&Networks::from(adapted_denoiser(&config, &device)));
    assert_eq!(values(&named_params(&trainer.last_finite())), values(&first));
    let mut batch = fixture.batch(1, &device);
    batch.noisy = batch.noisy.mul_scalar(f32::NAN);
    let message = trainer.step_on(&batch).unwrap_err().to_string();
    assert!(message.contains("NaN at step 2"), "{message}");
    assert_eq!(trainer.state(), before);
    assert_eq!(values(&named_params(&trainer.last_finite())), values(&first));
    trainer.step_on(&fixture.batch(1, &device)).unwrap();
    assert_ne!(values(&named_params(&trainer.last_finite())), values(&first));
}

fn values(params: &[NamedParam]) -> Vec<f32> {
    let adapter = params.iter().filter(|param| param.path.contains(".adapter."));
    adapter.flat_map(|param| param.value().into_data().iter::<f32>().collect::<Vec<_>>()).collect()
}

/// The moving average of factors of rotations stays orthogonal.
#[test]
fn the_average_stays_on_the_manifold() {
    let (fixture, device) = (Fixture::read(), Device::default());
    let config = settings(&["optimizer.ema_decay=0.8", "optimizer.rotation_lr=5e-2"]);
    let mut trainer = trainer(&config, &device);
    for step in 0..6 {
        trainer.step_on(&fixture.batch(step, &device)).unwrap();
    }
    let mut factors = 0;
    for (name, data) in trainer.state().average {
        if name.contains("rotation.factors") {
            let n = (data.num_elements() as f64).sqrt() as usize;
            let q: Tensor<2> = Tensor::<1>::from_data(data, &device).reshape([n, n]);
            let defect = matmul(q.clone().transpose(), q) - Tensor::eye(n, &device);
            assert!(max_abs(defect.into_data().iter::<f32>()) < 2e-6, "{name}");
            factors += 1;
        }
    }
    assert_eq!(factors, 12);
}
