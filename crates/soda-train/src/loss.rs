//! What a step minimises.
//!
//! With `e = mean |f(x_t, t, c) - target|²` of a sample (Ho et al., arXiv 2006.11239, eq. 14), weighted by its mask
//! where it has one (`masks`), and `e0` the same of the frozen network:
//!
//! | loss | of a sample | paper |
//! |---|---|---|
//! | `mse` | `e` | DreamBooth, arXiv 2208.12242 |
//! | `dco` | `-log σ(-β (e - e0))` | Direct Consistency Optimization, arXiv 2402.12004, eq. 9 |

use burn::tensor::Tensor;
use burn::tensor::activation::log_sigmoid;
use soda_adapters::{Component, without_adapters};
use soda_models::pipeline::Networks;
use soda_models::unet::Condition;

use crate::backward::Call;
use crate::batch::Batch;
use crate::config::{Loss, ObjectiveConfig, TrainConfig};
use crate::gradients::AdapterGradients;
use crate::prompts::Reading;

/// The loss of `batch`, and the gradients of `scale` times that; `networks` are adapted and on a plain device.
pub(crate) fn gradients(
    networks: &Networks,
    batch: &Batch,
    config: &TrainConfig,
    scale: f32,
) -> (f32, AdapterGradients) {
    let (loss, grads) = tensors(networks, &batch.weighted(scale), config);
    (loss.into_scalar::<f32>() / scale, grads)
}

/// The loss and its gradients, waiting for nothing.
pub(crate) fn tensors(
    networks: &Networks,
    batch: &Batch,
    config: &TrainConfig,
) -> (Tensor<1>, AdapterGradients) {
    let reading = Reading::new(networks, &batch.prompts);
    let (noisy, condition) = inputs(networks, batch, reading.condition.clone());
    let timesteps = batch.timesteps.clone();
    let call = Call { noisy, timesteps, condition, wants_condition: reading.learns() };
    let found = config.checkpointing.backward(&networks.unet, call, |prediction| {
        let mask = batch.mask.clone().map(Tensor::from_inner);
        let error = errors(prediction, Tensor::from_inner(batch.target.clone()), mask);
        let frozen = || Tensor::from_inner(frozen_errors(networks, batch));
        let each = each(error, frozen, &config.objective);
        (each * Tensor::from_inner(batch.weight.clone())).sum()
    });
    let unet = found.adapters.within(Component::Unet);
    let text = found.condition.map(|gradient| reading.backward(gradient)).unwrap_or_default();
    (found.loss, unet + text)
}

/// The loss of samples with these errors, `[b]`.
fn each(
    error: Tensor<1>,
    frozen: impl FnOnce() -> Tensor<1>,
    objective: &ObjectiveConfig,
) -> Tensor<1> {
    match objective.loss {
        Loss::Mse => error,
        Loss::Dco => log_sigmoid((error - frozen()).mul_scalar(-objective.dco_beta)).neg(),
    }
}

/// What the network is given, in its precision.
fn inputs(networks: &Networks, batch: &Batch, condition: Condition) -> (Tensor<4>, Condition) {
    let dtype = networks.unet.conv_in.weight.val().dtype();
    (batch.noisy.clone().cast(dtype), condition.cast(dtype))
}

/// The mean squared error of `batch`, off the tape.
pub(crate) fn value(networks: &Networks, batch: &Batch) -> f32 {
    let errors = plain_errors(networks, batch);
    (errors * batch.weight.clone()).sum().into_scalar::<f32>()
}

/// `e0`: the same weights with the adapters off, those of the text encoders too, never a second network.
fn frozen_errors(networks: &Networks, batch: &Batch) -> Tensor<1> {
    without_adapters(|| plain_errors(networks, batch))
}

/// The errors off the tape.
fn plain_errors(networks: &Networks, batch: &Batch) -> Tensor<1> {
    let (noisy, condition) = inputs(networks, batch, batch.prompts.condition(networks));
    let prediction = networks.unet.forward(noisy, batch.timesteps.clone(), condition);
    errors(prediction, batch.target.clone(), batch.mask.clone())
}

/// Mean squared error of each sample, `[b]`, in f32; `mask` is `[b, 1, h, w]`.
fn errors(prediction: Tensor<4>, target: Tensor<4>, mask: Option<Tensor<4>>) -> Tensor<1> {
    let samples = prediction.dims()[0];
    let squares = (prediction.cast(burn::tensor::DType::F32) - target).square();
    let squares = match mask {
        Some(mask) => squares * mask,
        None => squares,
    };
    let each: Tensor<2> = squares.flatten(1, 3);
    each.mean_dim(1).reshape([samples])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use burn::tensor::{Device, TensorData};
    use image::{GrayImage, Luma};
    use serde::Deserialize;

    use super::*;
    use crate::config::{AugmentConfig, MaskConfig};
    use crate::masks::weights;
    use crate::variants::views;

    /// A case of `docs/reference/masks.py`.
    #[derive(Deserialize)]
    struct Case {
        loss: Loss,
        normalize: bool,
        weights: Vec<f32>,
        value: f64,
        gradient: Vec<f64>,
    }

    const SHAPE: [usize; 4] = [3, 4, 6, 8];

    /// Numbers that the script makes alike.
    fn wave(pace: f64, size: f64) -> TensorData {
        let count = SHAPE.iter().product::<usize>();
        let values = (0..count).map(|i| ((i as f64 * pace).sin() * size) as f32);
        TensorData::new(values.collect::<Vec<_>>(), SHAPE)
    }

    /// Masks, losses and gradients against PyTorch in double precision: 1e-5 of the largest gradient, since sums of 192
    /// numbers are in f32 here.
    #[test]
    fn a_masked_loss_is_pytorchs() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../tests/fixtures/masks.json")).unwrap();
        assert_eq!(cases.len(), 4);
        let device = Device::default();
        for case in cases {
            let config = MaskConfig { normalize: case.normalize, ..MaskConfig::default() };
            let view = views((64, 48), [64, 48], &AugmentConfig::default(), 0, 0)[0];
            let mask = |i: u32| {
                let grey = |x, y| Luma([((7 * x + 13 * y * y + 31 * i) % (256 >> i)) as u8]);
                weights(&config, &GrayImage::from_fn(64, 48, grey), &view, 8)
            };
            let mask: Vec<f32> = (0..3).flat_map(mask).collect();
            let mask: Tensor<4> = Tensor::from_data(TensorData::new(mask, [3, 1, 6, 8]), &device);
            let on_tape = |data| Tensor::from_inner(Tensor::<4>::from_data(data, &device));
            let prediction = on_tape(wave(0.37, 1.0)).require_grad();
            let (target, frozen) = (on_tape(wave(0.11, 0.9)), on_tape(wave(0.23, 1.1)));
            let error = |prediction: Tensor<4>| {
                errors(prediction, target.clone(), Some(Tensor::from_inner(mask.clone())))
            };
            let objective =
                ObjectiveConfig { loss: case.loss, dco_beta: 3.0, ..ObjectiveConfig::default() };
            let share = TensorData::from(case.weights.as_slice());
            let share = Tensor::from_inner(Tensor::<1>::from_data(share, &device));
            let loss = each(error(prediction.clone()), || error(frozen.clone()), &objective);
            let loss = (loss * share).sum();
            let grads = loss.backward();
            let value = f64::from(loss.into_scalar::<f32>());
            assert!((value - case.value).abs() < 1e-5 * case.value.abs(), "{value}");
            let found = prediction.grad(&grads).unwrap().into_data();
            let largest = case.gradient.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
            for (found, expected) in found.iter::<f64>().zip(&case.gradient) {
                assert!((found - expected).abs() < 1e-5 * largest, "{found} for {expected}");
            }
        }
    }
}
