//! Steps in half precision: nearly the steps of f32, and no step where f16 overflows.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use burn::tensor::{DType, Device};
use soda_adapters::Method as _;
use soda_train::{TrainConfig, Trainer, TrainerState};

use common::{Fixture, settings, unet};

/// A trainer of the network in the precision of `config`.
fn trainer_in<'a>(config: &'a TrainConfig, device: &Device) -> Trainer<'a> {
    let unet = unet(device);
    let plan = config.method.plan(&config.targets, &unet).unwrap();
    let unet = plan.attach(config.precision.of(unet));
    Trainer::new(unet, &config.method, config).unwrap()
}

/// In half precision a step is the step of f32 but for the bits of mantissa that are missing, carried through some
/// thirty layers: in bf16 the loss within a hundredth, in f16, which has three bits more, an eighth of that. The adapter
/// is in f32.
#[test]
fn in_half_precision_the_loss_is_nearly_the_same_and_the_adapter_is_f32() {
    let (fixture, device) = (Fixture::read(), Device::default());
    let losses = |precision: &str| {
        let config = settings(&[precision]);
        let mut trainer = trainer_in(&config, &device);
        let losses =
            [0, 1].map(|step| trainer.step_on(&fixture.batch(step, &device)).unwrap().loss);
        let adapter = trainer.state().adapter;
        assert!(adapter.values().all(|data| data.dtype() == DType::F32));
        losses
    };
    let single = losses("precision=f32");
    for (name, dtype, tolerance) in [("bf16", DType::BF16, 1e-2), ("f16", DType::F16, 1e-2 / 8.0)] {
        if device.supports_dtype(dtype) {
            let half = losses(&format!("precision={name}"));
            for (single, half) in single.iter().zip(&half) {
                let error = (single - half).abs() / single;
                assert!(error > 0.0 && error < tolerance, "{name}: {error}");
            }
        }
    }
}

/// A scale that is too large costs steps and nothing else; where it stands is part of what a stopped run goes on
/// from.
#[test]
fn in_f16_a_step_that_overflows_is_passed_over() {
    let (fixture, device) = (Fixture::read(), Device::default());
    if !device.supports_dtype(DType::F16) {
        return;
    }
    let config = settings(&[
        "precision=f16",
        "loss_scale.initial=16777216",
        "loss_scale.growth_interval=2",
        "optimizer.ema_decay=0.9",
        "checkpointing=block",
    ]);
    let mut trainer = trainer_in(&config, &device);
    let mut overflows = 0;
    loop {
        let before = trainer.state();
        let step = trainer.step_on(&fixture.batch(0, &device)).unwrap();
        let after = trainer.state();
        let scales = [&before, &after].map(|state| state.scale.unwrap().value);
        assert_eq!(after.step, before.step + 1);
        if step.grad_norm.is_finite() {
            assert_eq!(scales[1], scales[0]);
            assert_ne!(after.adapter, before.adapter);
            break;
        }
        overflows += 1;
        assert_eq!(scales[1], scales[0] / 2.0);
        assert_eq!([step.rotation_lr, step.flat_lr], [0.0; 2]);
        assert_eq!(TrainerState { step: before.step, scale: before.scale, ..after }, before);
    }
    assert!(overflows > 0);
    // One good step more doubles the scale, in the run that was stopped before it too.
    let mut resumed = trainer_in(&config, &device).restored(trainer.state()).unwrap();
    let scale = trainer.scale().unwrap();
    for batch in [1, 2] {
        let steps = [&mut trainer, &mut resumed]
            .map(|trainer| trainer.step_on(&fixture.batch(batch, &device)).unwrap());
        assert_eq!(steps[0].loss, steps[1].loss);
        assert_eq!(trainer.state(), resumed.state());
        assert!(batch == 2 || trainer.scale().unwrap().value == 2.0 * scale.value);
    }
    // A run in f32 has no scale to go on from.
    assert!(trainer_in(&settings(&[]), &device).restored(resumed.state()).is_none());
}

#[test]
fn gradients_that_no_scale_helps_stop_the_training_with_the_remedy() {
    let (fixture, device) = (Fixture::read(), Device::default());
    if !device.supports_dtype(DType::F16) {
        return;
    }
    let config = settings(&["precision=f16", "loss_scale.initial=4"]);
    let mut trainer = trainer_in(&config, &device);
    let mut batch = fixture.batch(0, &device);
    batch.weight = batch.weight.mul_scalar(1e9);
    let before = trainer.state().adapter;
    trainer.step_on(&batch).unwrap();
    trainer.step_on(&batch).unwrap();
    let message = trainer.step_on(&batch).unwrap_err().to_string();
    assert!(message.contains("step 3 overflow f16 at any loss scale"), "{message}");
    assert!(message.contains("bf16"), "{message}");
    assert_eq!(trainer.state().adapter, before);
}
