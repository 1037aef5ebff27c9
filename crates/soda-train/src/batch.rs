//! One step's samples: fixed pictures, random noise. Everything random is a function of the seed and the
//! step, never of what ran before.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use soda_models::noise::{generator, normal};
use soda_models::scheduler::{Ddpm, PredictionType};
use soda_models::unet::{AddedCondition, Condition};

use crate::config::{ObjectiveConfig, TrainConfig};
use crate::encode::Encoded;
use crate::order::{Source, batches};
use crate::streams;

/// Noisy latents of one size, what the network should say of them, and how much each counts.
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
    /// The samples of `step`, from 0: `accumulation` times `batch_size` examples, and as many of the class
    /// where there is a prior to keep. Samples of one size are one batch where they follow each other.
    pub fn draw(
        data: &Encoded,
        class: Option<&Encoded>,
        schedule: &Ddpm,
        config: &TrainConfig,
        step: usize,
    ) -> Vec<Self> {
        let seed = config.seed;
        let stream = |stream: u64| generator(seed, stream + step as u64);
        let (size, count) = (config.batch_size, config.accumulation);
        let share = 1.0 / (size * count) as f64;
        let mut variant = stream(streams::VARIANT);
        let mut clean: Vec<Clean> = Vec::new();
        let mut take = |data: &Encoded, source: Source, posterior: u64, share: f64| {
            let mut posterior = stream(posterior);
            for (bucket, positions) in batches(&data.lens(), size, count, step, source) {
                let rows = data.rows(bucket, &positions, &mut variant);
                let next = Clean {
                    latents: data.latents(&rows, &mut posterior),
                    condition: data.condition(&rows),
                    shares: vec![share; rows.len()],
                };
                match clean.last_mut() {
                    Some(last) if last.fits(&next) => last.append(next),
                    _ => clean.push(next),
                }
            }
        };
        let source = Source { seed, examples: streams::ORDER, buckets: streams::BUCKET };
        take(data, source, streams::POSTERIOR, share);
        if let (Some(class), Some(prior)) = (class, &config.prior) {
            let (examples, buckets) = (streams::CLASS_ORDER, streams::CLASS_BUCKET);
            let source = Source { seed, examples, buckets };
            take(class, source, streams::CLASS_POSTERIOR, share * prior.weight);
        }
        let mut draws = Draws {
            timesteps: stream(streams::TIMESTEP),
            noise: stream(streams::NOISE),
            offset: stream(streams::OFFSET),
        };
        let objective = &config.objective;
        clean.into_iter().map(|clean| clean.noised(schedule, objective, &mut draws)).collect()
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

/// Samples without noise, of one size.
struct Clean {
    latents: Tensor<4>,
    condition: Condition,
    /// In the loss, before any weight of the timestep.
    shares: Vec<f64>,
}

/// The random numbers of a step's samples, in their order.
struct Draws {
    timesteps: ChaCha8Rng,
    noise: ChaCha8Rng,
    offset: ChaCha8Rng,
}

impl Clean {
    fn fits(&self, other: &Self) -> bool {
        self.latents.dims()[1..] == other.latents.dims()[1..]
    }

    fn append(&mut self, other: Self) {
        self.latents = Tensor::cat(vec![self.latents.clone(), other.latents], 0);
        self.condition = self.condition.clone().cat(other.condition);
        self.shares.extend(other.shares);
    }

    fn noised(self, schedule: &Ddpm, objective: &ObjectiveConfig, draws: &mut Draws) -> Batch {
        let Self { latents, condition, shares } = self;
        let (count, device) = (shares.len(), latents.device());
        let steps = draw_timesteps(count, schedule, objective, &mut draws.timesteps);
        let weight: Vec<f32> = shares
            .iter()
            .zip(&steps)
            .map(|(share, &t)| (share * snr_weight(schedule, objective, t as usize)) as f32)
            .collect();
        let timesteps = Tensor::from_data(TensorData::new(steps, [count]), &device);
        let noise = draw_noise(latents.dims(), objective, draws, &device);
        Batch {
            noisy: schedule.add_noise(latents.clone(), noise.clone(), timesteps.clone()),
            target: schedule.target(latents, noise, timesteps.clone()),
            weight: Tensor::from_data(TensorData::new(weight, [count]), &device),
            condition,
            timesteps,
        }
    }
}

fn draw_timesteps(
    count: usize,
    schedule: &Ddpm,
    objective: &ObjectiveConfig,
    rng: &mut impl Rng,
) -> Vec<i64> {
    let [first, end] = objective.timesteps.unwrap_or([0, schedule.num_train_timesteps()]);
    (0..count).map(|_| rng.random_range(first as i64..end as i64)).collect()
}

/// Standard normal, plus a shift of whole channels (Guttenberg, "Diffusion with offset noise", 2023).
fn draw_noise(
    shape: [usize; 4],
    objective: &ObjectiveConfig,
    draws: &mut Draws,
    device: &Device,
) -> Tensor<4> {
    let noise = normal(&mut draws.noise, shape, device);
    if objective.noise_offset == 0.0 {
        return noise;
    }
    let [batch, channels, _, _] = shape;
    let shift: Tensor<4> = normal(&mut draws.offset, [batch, channels, 1, 1], device);
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
        let drawn = draw_timesteps(500, &schedule, &objective, &mut generator(0, 0));
        for t in 200..203 {
            assert!(drawn.contains(&t));
        }
        assert!(drawn.iter().all(|t| (200..203).contains(t)));
    }
}
