//! The loss of a training step.
//!
//! With `e = mean |f(x_t, t, c) - target|²` for a sample (Ho et al., arXiv 2006.11239, eq. 14), weighted by
//! the sample's mask if it has one, and `e0` the same error of the frozen network:
//!
//! | loss | value for a sample | paper |
//! |---|---|---|
//! | `mse` | `e` | DreamBooth, arXiv 2208.12242 |
//! | `dco` | `-log σ(-β (e - e0))` | Direct Consistency Optimization, arXiv 2402.12004, eq. 9 |

use burn::module::Module as _;
use burn::tensor::activation::log_sigmoid;
use burn::tensor::{DType, Tensor};
use soda_adapters::without_adapters;
use soda_kernels::with_copies_ahead;
use soda_models::condition::Condition;
use soda_models::pipeline::{Denoiser, Networks};
use soda_optim::AdapterGradients;

use crate::config::{Loss, ObjectiveConfig, TrainConfig};
use crate::data::batch::Batch;
use crate::data::prompts::{Prompts, map_condition};
use crate::step::backward::{DenoiserInputs, LossAndGradients, on_tape};
use crate::step::text_encoding::TextEncoding;

/// `loss_scale` times the loss of `batch`, and its gradients. `networks` have their adapters attached and are
/// on a plain device.
pub(crate) fn gradients(
    networks: &Networks,
    batch: &Batch,
    config: &TrainConfig,
    loss_scale: f32,
) -> (Tensor<1>, AdapterGradients) {
    let text = TextEncoding::new(networks, &batch.prompts);
    let inputs = LossInputs::new(networks, &batch.weighted(loss_scale), &text, config);
    let LossAndGradients { loss, adapters, condition } =
        inputs.backward(&networks.denoiser, config);
    let text = condition.map(|gradient| text.backward(gradient)).unwrap_or_default();
    let adapters = adapters.with_prefix(networks.denoiser.folder());
    (loss, adapters + text)
}

/// The loss of `batch`, and [`gradients`].
#[cfg(test)]
pub(crate) fn loss_and_gradients(
    networks: &Networks,
    batch: &Batch,
    config: &TrainConfig,
    loss_scale: f32,
) -> (f32, AdapterGradients) {
    let (loss, gradients) = gradients(networks, batch, config, loss_scale);
    (loss.into_scalar::<f32>() / loss_scale, gradients)
}

/// Everything that the loss of a step depends on except the denoiser: samples and their encoded prompts.
#[derive(Clone, Debug)]
pub(crate) struct LossInputs {
    batch: Batch,
    condition: Condition,
    /// The condition of the frozen network, if the loss needs its prediction and its condition differs.
    reference_condition: Option<Condition>,
    wants_condition_gradient: bool,
}

impl LossInputs {
    /// `text` is the encoding of `batch.prompts` by `networks`.
    pub(crate) fn new(
        networks: &Networks,
        batch: &Batch,
        text: &TextEncoding,
        config: &TrainConfig,
    ) -> Self {
        let needs_reference = config.objective.loss == Loss::Dco;
        let reference_condition = match &batch.prompts {
            Prompts::Encoded(_) => None,
            // The reference has frozen text encoders too, and the first embeddings of new words.
            tokens => needs_reference.then(|| {
                let networks = networks.clone().with_initial_tokens();
                without_adapters(|| tokens.condition(&networks))
            }),
        };
        Self {
            condition: text.condition.clone(),
            wants_condition_gradient: text.needs_gradient(),
            batch: batch.clone(),
            reference_condition,
        }
    }

    /// What the squared error of `batch` depends on except the denoiser.
    pub(crate) fn without_gradients(networks: &Networks, batch: &Batch) -> Self {
        Self {
            condition: batch.prompts.condition(networks),
            wants_condition_gradient: false,
            batch: batch.clone(),
            reference_condition: None,
        }
    }

    /// The weighted squared error, without gradients.
    pub(crate) fn squared_error(&self, denoiser: &Denoiser) -> Tensor<1> {
        let Self { batch, condition, .. } = self;
        let condition = condition.clone().cast(denoiser.dtype());
        let noisy = batch.noisy.clone().cast(denoiser.dtype());
        let forward = || denoiser.forward(noisy, batch.timesteps.clone(), condition);
        let errors = (with_copies_ahead(forward).cast(DType::F32) - batch.target.clone()).square();
        (per_sample_mean(errors, batch.mask.clone()) * batch.weight.clone()).sum()
    }

    /// The weighted sum of the samples' losses and its gradients. Reads nothing back from the device.
    pub(crate) fn backward(&self, denoiser: &Denoiser, config: &TrainConfig) -> LossAndGradients {
        let Self { batch, condition, reference_condition, wants_condition_gradient } = self;
        let inputs = |condition: &Condition| DenoiserInputs {
            noisy: batch.noisy.clone().cast(denoiser.dtype()),
            timesteps: batch.timesteps.clone(),
            condition: condition.clone().cast(denoiser.dtype()),
            wants_condition_gradient: *wants_condition_gradient,
        };
        let reference = || {
            let condition = reference_condition.as_ref().unwrap_or(condition);
            reference_prediction(denoiser, inputs(condition))
        };
        let lift = |x: &Tensor<4>| Tensor::<4>::from_inner(x.clone());
        config.checkpointing.backward(denoiser, inputs(condition), |prediction| {
            let (target, mask) = (lift(&batch.target), batch.mask.as_ref().map(lift));
            let reference = || Tensor::from_inner(reference());
            let losses = per_sample_loss(prediction, reference, target, mask, &config.objective);
            (losses * Tensor::from_inner(batch.weight.clone())).sum()
        })
    }

    /// The shape of the noisy latents.
    pub(crate) fn noisy_dims(&self) -> [usize; 4] {
        self.batch.noisy.dims()
    }

    /// The encoded prompts.
    pub(crate) fn condition(&self) -> &Condition {
        &self.condition
    }

    /// Applies `f` to every tensor, flattened, in a fixed order.
    #[must_use]
    pub(crate) fn map(&self, mut f: impl FnMut(Tensor<1>) -> Tensor<1>) -> Self {
        let reference = self.reference_condition.as_ref();
        Self {
            batch: self.batch.map(&mut f),
            condition: map_condition(&self.condition, &mut f),
            reference_condition: reference.map(|condition| map_condition(condition, &mut f)),
            wants_condition_gradient: self.wants_condition_gradient,
        }
    }
}

/// The prediction of the denoiser without its adapters.
///
/// It runs on the tape's device with nothing to track. There it uses the same kernels as the trained
/// prediction; off the tape some kernels round differently, and the loss multiplies the difference by `β`.
fn reference_prediction(denoiser: &Denoiser, inputs: DenoiserInputs) -> Tensor<4> {
    let DenoiserInputs { noisy, timesteps, condition, .. } = inputs;
    let (noisy, timesteps) = (Tensor::from_inner(noisy), Tensor::<1>::from_inner(timesteps));
    let denoiser = denoiser.clone().train().no_grad();
    without_adapters(|| denoiser.forward(noisy, timesteps, on_tape(condition, false))).inner()
}

/// The loss of each sample, `[b]`. `reference` gives the prediction of the frozen network.
///
/// The difference `e - e0` of DCO is computed as one mean, `(f - f0)(f + f0 - 2 target)`. The difference of
/// two means would have the rounding errors of both, multiplied by `β`.
fn per_sample_loss(
    prediction: Tensor<4>,
    reference: impl FnOnce() -> Tensor<4>,
    target: Tensor<4>,
    mask: Option<Tensor<4>>,
    objective: &ObjectiveConfig,
) -> Tensor<1> {
    let prediction = prediction.cast(DType::F32);
    match objective.loss {
        Loss::Mse => per_sample_mean((prediction - target).square(), mask),
        Loss::Dco => {
            let reference = reference().cast(DType::F32);
            let sum = prediction.clone() + reference.clone() - target.mul_scalar(2.0);
            let difference = per_sample_mean((prediction - reference) * sum, mask);
            log_sigmoid(difference.mul_scalar(-objective.dco_beta)).neg()
        }
    }
}

/// The mean of each sample, `[b]`. `mask` `[b, 1, h, w]` multiplies `values` `[b, c, h, w]`.
fn per_sample_mean(values: Tensor<4>, mask: Option<Tensor<4>>) -> Tensor<1> {
    let samples = values.dims()[0];
    let values = match mask {
        Some(mask) => values * mask,
        None => values,
    };
    let flat: Tensor<2> = values.flatten(1, 3);
    flat.mean_dim(1).reshape([samples])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use burn::tensor::{Device, TensorData};
    use image::{GrayImage, Luma};
    use serde::Deserialize;
    use soda_testing::assert_close;

    use super::*;
    use crate::config::{AugmentConfig, MaskConfig};
    use crate::data::augment::image_variants;
    use crate::data::masks::weights;

    /// A case of the fixture, which `masks.py` writes.
    #[derive(Deserialize)]
    struct Case {
        loss: Loss,
        normalize: bool,
        weights: Vec<f32>,
        value: f64,
        gradient: Vec<f64>,
    }

    const SHAPE: [usize; 4] = [3, 4, 6, 8];

    /// The values that the script uses, too.
    fn wave(pace: f64, size: f64) -> TensorData {
        let count = SHAPE.iter().product::<usize>();
        let values = (0..count).map(|i| ((i as f64 * pace).sin() * size) as f32);
        TensorData::new(values.collect::<Vec<_>>(), SHAPE)
    }

    /// Masked losses and gradients agree with PyTorch in double precision. The tolerance is 1e-5 of the
    /// largest gradient, because sums of 192 values are in f32 here.
    #[test]
    fn a_masked_loss_agrees_with_pytorch() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../tests/fixtures/masks.json")).unwrap();
        assert_eq!(cases.len(), 4);
        let device = Device::default();
        for case in cases {
            let config = MaskConfig { normalize: case.normalize, ..MaskConfig::default() };
            let view = image_variants((64, 48), [64, 48], &AugmentConfig::default(), 0, 0)[0];
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
            let loss = per_sample_loss(prediction.clone(), || frozen, target, mask, &objective);
            let loss = (loss * share).sum();
            let grads = loss.backward();
            let value = f64::from(loss.into_scalar::<f32>());
            assert!((value - case.value).abs() < 1e-5 * case.value.abs(), "{value}");
            let found: Vec<f64> = prediction.grad(&grads).unwrap().into_data().iter().collect();
            assert_close("gradient", &found, &case.gradient, 1e-5);
        }
    }
}
