//! Steps in half precision are close to steps in f32; steps in which f16 overflows are skipped.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use burn::tensor::{DType, Device};
use soda_adapters::Method as _;
use soda_train::{TrainConfig, Trainer, TrainerState};

use common::{Fixture, denoiser, settings};

/// A trainer of the denoiser in the precision of `config`.
fn trainer_in<'a>(config: &'a TrainConfig, device: &Device) -> Trainer<'a> {
    let denoiser = denoiser(device);
    let plan = config.method.plan(&config.targets, &denoiser).unwrap();
    let denoiser = plan.attach(config.precision.cast_denoiser(denoiser));
    Trainer::new(denoiser, &config.method, config).unwrap()
}

/// In half precision the loss differs from f32 by the rounding of some thirty layers: at most 1e-2 in bf16,
/// and an eighth of it in f16, which has three more bits of mantissa. The adapter stays in f32.
#[test]
fn in_half_precision_the_loss_is_close_and_the_adapter_is_f32() {
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

/// A loss scale that is too large only skips steps. A checkpoint contains the scale.
#[test]
fn in_f16_a_step_that_overflows_is_skipped() {
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
        let scales = [&before, &after].map(|state| state.loss_scale.unwrap().value);
        assert_eq!(after.step, before.step + 1);
        if step.grad_norm.is_finite() {
            assert_eq!(scales[1], scales[0]);
            assert_ne!(after.adapter, before.adapter);
            break;
        }
        overflows += 1;
        assert_eq!(scales[1], scales[0] / 2.0);
        assert_eq!([step.rotation_lr, step.flat_lr], [0.0; 2]);
        assert_eq!(
            TrainerState { step: before.step, loss_scale: before.loss_scale, ..after },
            before
        );
    }
    assert!(overflows > 0);
    // One more finite step doubles the scale, also in the resumed run.
    let mut resumed = trainer_in(&config, &device).restored(trainer.state()).unwrap();
    let scale = trainer.loss_scale().unwrap();
    for batch in [1, 2] {
        let steps = [&mut trainer, &mut resumed]
            .map(|trainer| trainer.step_on(&fixture.batch(batch, &device)).unwrap());
        assert_eq!(steps[0].loss, steps[1].loss);
        assert_eq!(trainer.state(), resumed.state());
        assert!(batch == 2 || trainer.loss_scale().unwrap().value == 2.0 * scale.value);
    }
    // A run in f32 cannot continue from a state with a loss scale.
    assert!(trainer_in(&settings(&[]), &device).restored(resumed.state()).is_none());
}

#[test]
fn gradients_that_overflow_at_any_scale_stop_the_training_with_the_remedy() {
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
