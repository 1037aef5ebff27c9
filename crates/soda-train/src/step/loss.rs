//! What a step minimises.
//!
//! With `e = mean |f(x_t, t, c) - target|²` of a sample (Ho et al., arXiv 2006.11239, eq. 14), weighted by its mask
//! where it has one (`masks`), and `e0` the same of the frozen network:
//!
//! | loss | of a sample | paper |
//! |---|---|---|
//! | `mse` | `e` | DreamBooth, arXiv 2208.12242 |
//! | `dco` | `-log σ(-β (e - e0))` | Direct Consistency Optimization, arXiv 2402.12004, eq. 9 |

use burn::module::Module as _;
use burn::tensor::activation::log_sigmoid;
use burn::tensor::{DType, Tensor};
use soda_adapters::{Component, without_adapters};
use soda_models::pipeline::Networks;
use soda_models::unet::{Condition, Unet};

use crate::config::{Loss, ObjectiveConfig, TrainConfig};
use crate::data::batch::Batch;
use crate::data::prompts::{Prompts, map_condition};
use crate::step::backward::{Backward, Call, on_tape};
use crate::step::gradients::AdapterGradients;
use crate::step::text_encoding::Reading;

/// The loss of `batch`, and the gradients of `scale` times that; `networks` are adapted and on a plain device.
pub(crate) fn gradients(
    networks: &Networks,
    batch: &Batch,
    config: &TrainConfig,
    scale: f32,
) -> (f32, AdapterGradients) {
    let reading = Reading::new(networks, &batch.prompts);
    let question = Question::new(networks, &batch.weighted(scale), &reading, config);
    let Backward { loss, adapters, condition } = question.answer(&networks.unet, config);
    let text = condition.map(|gradient| reading.backward(gradient)).unwrap_or_default();
    (loss.into_scalar::<f32>() / scale, adapters.within(Component::Unet) + text)
}

/// What the UNet is asked in a step: samples whose prompts have been read.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    batch: Batch,
    condition: Condition,
    /// What the frozen network is told, where it is asked and that is something else.
    frozen: Option<Condition>,
    wants_condition: bool,
}

impl Question {
    /// `reading` is what `networks` make of the prompts of `batch`.
    pub(crate) fn new(
        networks: &Networks,
        batch: &Batch,
        reading: &Reading,
        config: &TrainConfig,
    ) -> Self {
        let asked = config.objective.loss == Loss::Dco;
        let frozen = match &batch.prompts {
            Prompts::Encoded(_) => None,
            // Its text encoders are frozen too, and new words are what they were.
            tokens => asked.then(|| {
                let networks = networks.clone().with_words_at_start();
                without_adapters(|| tokens.condition(&networks))
            }),
        };
        Self {
            condition: reading.condition.clone(),
            wants_condition: reading.learns(),
            batch: batch.clone(),
            frozen,
        }
    }

    /// The loss and its gradients, waiting for nothing.
    pub(crate) fn answer(&self, unet: &Unet, config: &TrainConfig) -> Backward {
        let Self { batch, condition, frozen, wants_condition } = self;
        let call = |condition: &Condition| Call {
            noisy: batch.noisy.clone().cast(dtype(unet)),
            timesteps: batch.timesteps.clone(),
            condition: condition.clone().cast(dtype(unet)),
            wants_condition: *wants_condition,
        };
        let still = || frozen_prediction(unet, call(frozen.as_ref().unwrap_or(condition)));
        let taped = |x: &Tensor<4>| Tensor::<4>::from_inner(x.clone());
        config.checkpointing.backward(unet, call(condition), |prediction| {
            let (target, mask) = (taped(&batch.target), batch.mask.as_ref().map(taped));
            let still = || Tensor::from_inner(still());
            let each = each(prediction, still, target, mask, &config.objective);
            (each * Tensor::from_inner(batch.weight.clone())).sum()
        })
    }

    /// Every tensor of it through `f`, flat, in one order.
    #[must_use]
    pub(crate) fn map(&self, mut f: impl FnMut(Tensor<1>) -> Tensor<1>) -> Self {
        Self {
            batch: self.batch.map(&mut f),
            condition: map_condition(&self.condition, &mut f),
            frozen: self.frozen.as_ref().map(|condition| map_condition(condition, &mut f)),
            wants_condition: self.wants_condition,
        }
    }
}

/// What the network says with its adapters off, never a second network. On the tape's device with nothing to track, where
/// every kernel is the one that the prediction beside it comes from: off it some round otherwise, and the loss multiplies the
/// difference by `β`.
fn frozen_prediction(unet: &Unet, call: Call) -> Tensor<4> {
    let Call { noisy, timesteps, condition, .. } = call;
    let (noisy, timesteps) = (Tensor::from_inner(noisy), Tensor::<1>::from_inner(timesteps));
    let unet = unet.clone().train().no_grad();
    without_adapters(|| unet.forward(noisy, timesteps, on_tape(condition, false))).inner()
}

/// The loss of each sample, `[b]`; `still` is what the frozen network predicts.
///
/// `e - e0` of DCO is one mean, `(f - f0)(f + f0 - 2 target)`: as the difference of two it would have the roundings of
/// both, which `β` multiplies.
fn each(
    prediction: Tensor<4>,
    still: impl FnOnce() -> Tensor<4>,
    target: Tensor<4>,
    mask: Option<Tensor<4>>,
    objective: &ObjectiveConfig,
) -> Tensor<1> {
    let prediction = prediction.cast(DType::F32);
    match objective.loss {
        Loss::Mse => mean((prediction - target).square(), mask),
        Loss::Dco => {
            let still = still().cast(DType::F32);
            let sum = prediction.clone() + still.clone() - target.mul_scalar(2.0);
            let better = mean((prediction - still) * sum, mask);
            log_sigmoid(better.mul_scalar(-objective.dco_beta)).neg()
        }
    }
}

/// The mean squared error of `batch`, off the tape.
pub(crate) fn value(networks: &Networks, batch: &Batch) -> f32 {
    let unet = &networks.unet;
    let condition = batch.prompts.condition(networks).cast(dtype(unet));
    let noisy = batch.noisy.clone().cast(dtype(unet));
    let prediction = unet.forward(noisy, batch.timesteps.clone(), condition).cast(DType::F32);
    let errors = mean((prediction - batch.target.clone()).square(), batch.mask.clone());
    (errors * batch.weight.clone()).sum().into_scalar::<f32>()
}

fn dtype(unet: &Unet) -> DType {
    unet.conv_in.weight.val().dtype()
}

/// The mean of each sample, `[b]`; `mask` is `[b, 1, h, w]`.
fn mean(values: Tensor<4>, mask: Option<Tensor<4>>) -> Tensor<1> {
    let samples = values.dims()[0];
    let values = match mask {
        Some(mask) => values * mask,
        None => values,
    };
    let each: Tensor<2> = values.flatten(1, 3);
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
    use crate::data::augment::views;
    use crate::data::masks::weights;

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
            serde_json::from_str(include_str!("../../tests/fixtures/masks.json")).unwrap();
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
            let objective =
                ObjectiveConfig { loss: case.loss, dco_beta: 3.0, ..ObjectiveConfig::default() };
            let share = TensorData::from(case.weights.as_slice());
            let share = Tensor::from_inner(Tensor::<1>::from_data(share, &device));
            let mask = Some(Tensor::from_inner(mask));
            let loss = each(prediction.clone(), || frozen, target, mask, &objective);
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
