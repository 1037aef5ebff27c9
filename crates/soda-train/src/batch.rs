//! One step's samples: fixed pictures, random noise. Everything random is a function of the seed and the
//! step, never of what ran before.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng;
use rand::seq::SliceRandom;
use soda_models::noise::{gaussian, generator};
use soda_models::scheduler::{Ddpm, PredictionType};
use soda_models::unet::{AddedCondition, Condition};

use crate::config::{ObjectiveConfig, TrainConfig};
use crate::encode::Encoded;
use crate::streams;

/// Noisy latents, what the network should say of them, and how much each counts.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `x_t`, `[b, c, h, w]`.
    pub noisy: Tensor<4>,
    /// `t`, `[b]`.
    pub timesteps: Tensor<1, Int>,
    /// What the network is told: text states `[b, 77, width]`, and of SDXL the sizes.
    pub condition: Condition,
    /// `ε`, `v` or the picture, as the model predicts, `[b, c, h, w]`.
    pub target: Tensor<4>,
    /// The share of each sample in the loss, `[b]`; `1 / b` for a plain mean.
    pub weight: Tensor<1>,
}

impl Batch {
    /// The samples of `step`, from 0: `batch_size * accumulation` examples, and as many of the class
    /// where there is a prior to keep.
    pub fn draw(
        data: &Encoded,
        class: Option<&Encoded>,
        schedule: &Ddpm,
        config: &TrainConfig,
        step: usize,
    ) -> Self {
        let (seed, step) = (config.seed, step as u64);
        let device = data.device();
        let size = config.batch_size * config.accumulation;
        let mut variant = generator(seed, streams::VARIANT + step);
        let rows = data.rows(&order(data.len(), size, seed, step, streams::ORDER), &mut variant);
        let mut latents = data.latents(&rows, seed, streams::POSTERIOR + step);
        let mut condition = data.condition(&rows);
        let mut shares = vec![1.0; size];
        if let (Some(class), Some(prior)) = (class, &config.prior) {
            let order = order(class.len(), size, seed, step, streams::CLASS_ORDER);
            let rows = class.rows(&order, &mut variant);
            let kept = class.latents(&rows, seed, streams::CLASS_POSTERIOR + step);
            latents = Tensor::cat(vec![latents, kept], 0);
            condition = condition.cat(class.condition(&rows));
            shares.extend(vec![prior.weight; size]);
        }
        let count = shares.len();
        let objective = &config.objective;
        let steps = draw_timesteps(count, schedule, objective, seed, step);
        let weight: Vec<f32> = shares
            .iter()
            .zip(&steps)
            .map(|(share, &t)| {
                (share / size as f64 * snr_weight(schedule, objective, t as usize)) as f32
            })
            .collect();
        let timesteps = Tensor::from_data(TensorData::new(steps, [count]), &device);
        let noise = draw_noise(latents.dims(), objective, seed, step, &device);
        Self {
            noisy: schedule.add_noise(latents.clone(), noise.clone(), timesteps.clone()),
            target: schedule.target(latents, noise, timesteps.clone()),
            weight: Tensor::from_data(TensorData::new(weight, [count]), &device),
            condition,
            timesteps,
        }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Never true of what [`Batch::draw`] makes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of the samples, with the share in the loss that they have.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let (start, length) = (rows.start, rows.len());
        Self {
            noisy: self.noisy.clone().narrow(0, start, length),
            timesteps: self.timesteps.clone().narrow(0, start, length),
            condition: Condition {
                text: self.condition.text.clone().narrow(0, start, length),
                added: self.condition.added.clone().map(|added| AddedCondition {
                    pooled: added.pooled.narrow(0, start, length),
                    time_ids: added.time_ids.narrow(0, start, length),
                }),
            },
            target: self.target.clone().narrow(0, start, length),
            weight: self.weight.clone().narrow(0, start, length),
        }
    }

    /// At most `count` parts of nearly equal size, in order, none empty.
    pub(crate) fn parts(&self, count: usize) -> Vec<Self> {
        let (len, count) = (self.len(), count.clamp(1, self.len().max(1)));
        (0..count).map(|i| self.rows(len * i / count..len * (i + 1) / count)).collect()
    }
}

/// Which examples a step sees: epoch after epoch, each in its own order.
fn order(examples: usize, size: usize, seed: u64, step: u64, stream: u64) -> Vec<i64> {
    let first = step as usize * size;
    let mut rows = Vec::with_capacity(size);
    while rows.len() < size {
        let position = first + rows.len();
        let (epoch, skip) = (position / examples, position % examples);
        let mut permutation: Vec<i64> = (0..examples as i64).collect();
        permutation.shuffle(&mut generator(seed, stream + epoch as u64));
        rows.extend(permutation.into_iter().skip(skip).take(size - rows.len()));
    }
    rows
}

fn draw_timesteps(
    count: usize,
    schedule: &Ddpm,
    objective: &ObjectiveConfig,
    seed: u64,
    step: u64,
) -> Vec<i64> {
    let [first, end] = objective.timesteps.unwrap_or([0, schedule.num_train_timesteps()]);
    let mut rng = generator(seed, streams::TIMESTEP + step);
    (0..count).map(|_| rng.random_range(first as i64..end as i64)).collect()
}

/// Standard normal, plus a shift of whole channels (Guttenberg, "Diffusion with offset noise", 2023).
fn draw_noise(
    shape: [usize; 4],
    objective: &ObjectiveConfig,
    seed: u64,
    step: u64,
    device: &Device,
) -> Tensor<4> {
    let noise = gaussian(seed, streams::NOISE + step, shape, device);
    if objective.noise_offset == 0.0 {
        return noise;
    }
    let [batch, channels, _, _] = shape;
    let shift: Tensor<4> = gaussian(seed, streams::OFFSET + step, [batch, channels, 1, 1], device);
    noise + shift.mul_scalar(objective.noise_offset)
}

/// Min-SNR (Hang et al., arXiv 2303.09556): the error of the picture, `SNR |x0 - x̂0|²`, with a weight
/// of at most γ, in terms of what the network predicts.
fn snr_weight(schedule: &Ddpm, objective: &ObjectiveConfig, t: usize) -> f64 {
    let Some(gamma) = objective.min_snr_gamma else { return 1.0 };
    let snr = schedule.schedule.snr(t);
    match schedule.schedule.prediction_type {
        // |ε - ε̂|² = SNR |x0 - x̂0|², |v - v̂|² = (SNR + 1) |x0 - x̂0|².
        PredictionType::Epsilon => snr.min(gamma) / snr,
        PredictionType::VPrediction => snr.min(gamma) / (snr + 1.0),
        PredictionType::Sample => snr.min(gamma),
    }
}

#[cfg(test)]
mod tests {
    use soda_models::scheduler::SchedulerConfig;

    use super::*;

    #[test]
    fn every_epoch_sees_every_example_once() {
        for (examples, size) in [(5, 5), (5, 2), (3, 7), (1, 4)] {
            let epochs = 6;
            let steps = (examples * epochs) / size;
            let rows: Vec<i64> = (0..steps as u64)
                .flat_map(|step| order(examples, size, 7, step, streams::ORDER))
                .collect();
            for epoch in rows.chunks_exact(examples) {
                let mut seen = epoch.to_vec();
                seen.sort_unstable();
                assert_eq!(seen, (0..examples as i64).collect::<Vec<_>>());
            }
        }
        let order = |seed, step| order(20, 20, seed, step, streams::ORDER);
        assert_ne!(order(7, 0), order(7, 1));
        assert_ne!(order(7, 0), order(8, 0));
    }

    #[test]
    fn min_snr_is_one_where_the_noise_is_strong_and_gamma_over_snr_where_it_is_weak() {
        let schedule = Ddpm::new(&SchedulerConfig::default());
        let weight = |gamma, t| {
            let objective = ObjectiveConfig { min_snr_gamma: gamma, ..Default::default() };
            snr_weight(&schedule, &objective, t)
        };
        assert_eq!(weight(None, 0), 1.0);
        assert_eq!(weight(Some(5.0), 999), 1.0);
        let snr = schedule.schedule.snr(0);
        assert!(snr > 100.0 && (weight(Some(5.0), 0) - 5.0 / snr).abs() < 1e-12);
    }

    #[test]
    fn timesteps_stay_in_their_range() {
        let schedule = Ddpm::new(&SchedulerConfig::default());
        let objective = ObjectiveConfig { timesteps: Some([200, 203]), ..Default::default() };
        let drawn = draw_timesteps(500, &schedule, &objective, 0, 0);
        for t in 200..203 {
            assert!(drawn.contains(&t));
        }
        assert!(drawn.iter().all(|t| (200..203).contains(t)));
    }
}
