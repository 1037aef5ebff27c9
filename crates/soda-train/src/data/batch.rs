//! One step's samples: fixed pictures, random noise. Everything random is a function of the seed and the
//! step, never of what ran before.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use soda_models::noise::{generator, normal};
use soda_models::scheduler::{Ddpm, PredictionType};

use crate::config::{ObjectiveConfig, TrainConfig};
use crate::data::encode::EncodedDataset;
use crate::data::prompts::{Prompts, through};
use crate::data::rng;
use crate::data::sampler::{Source, batches};

/// Noisy latents of one size, what the network should say of them, and how much each counts.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `x_t`, `[b, c, h, w]`.
    pub noisy: Tensor<4>,
    /// `t`, `[b]`, in floats as the network reads it.
    pub timesteps: Tensor<1>,
    /// What the network is told.
    pub prompts: Prompts,
    /// `ε`, `v` or the picture, as the model predicts, `[b, c, h, w]`.
    pub target: Tensor<4>,
    /// The share of each sample in the loss, `[b]`; `1 / b` for a plain mean.
    pub weight: Tensor<1>,
    /// What each latent counts, `[b, 1, h, w]`; without it all count alike.
    pub mask: Option<Tensor<4>>,
}

impl Batch {
    /// The samples of `step`, from 0: `accumulation` times `batch_size` examples, and as many of the class
    /// where there is a prior to keep. Samples of one size are one batch where they follow each other.
    pub fn sample(
        data: &EncodedDataset,
        class: Option<&EncodedDataset>,
        schedule: &Ddpm,
        config: &TrainConfig,
        step: usize,
    ) -> Vec<Self> {
        let seed = config.seed;
        let stream = |stream: u64| generator(seed, stream + step as u64);
        let (size, count) = (config.batch_size, config.accumulation);
        let share = 1.0 / (size * count) as f64;
        let mut variant = stream(rng::VARIANT);
        let mut clean: Vec<Clean> = Vec::new();
        let mut take = |data: &EncodedDataset, source: Source, posterior: u64, share: f64| {
            let mut posterior = stream(posterior);
            for (bucket, positions) in batches(&data.lens(), size, count, step, source) {
                let rows = data.rows(bucket, &positions, &mut variant);
                let next = Clean {
                    latents: data.latents(&rows, &mut posterior),
                    prompts: data.prompts(&rows),
                    mask: data.mask(&rows),
                    shares: vec![share; rows.len()],
                };
                match clean.last_mut() {
                    Some(last) if last.fits(&next) => last.append(next),
                    _ => clean.push(next),
                }
            }
        };
        let source = Source { seed, examples: rng::ORDER, buckets: rng::BUCKET };
        take(data, source, rng::POSTERIOR, share);
        if let (Some(class), Some(prior)) = (class, &config.prior) {
            let (examples, buckets) = (rng::CLASS_ORDER, rng::CLASS_BUCKET);
            let source = Source { seed, examples, buckets };
            take(class, source, rng::CLASS_POSTERIOR, share * prior.weight);
        }
        let mut draws = Draws {
            timesteps: stream(rng::TIMESTEP),
            noise: stream(rng::NOISE),
            offset: stream(rng::OFFSET),
        };
        let objective = &config.objective;
        clean.into_iter().map(|clean| clean.noised(schedule, objective, &mut draws)).collect()
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Never true of what [`Batch::sample`] makes.
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
            prompts: self.prompts.rows(rows),
            target: self.target.clone().narrow(0, start, length),
            weight: self.weight.clone().narrow(0, start, length),
            mask: self.mask.clone().map(|mask| mask.narrow(0, start, length)),
        }
    }

    /// The same where every sample counts `scale` times as much.
    #[must_use]
    pub(crate) fn weighted(&self, scale: f32) -> Self {
        Self { weight: self.weight.clone().mul_scalar(scale), ..self.clone() }
    }

    /// Every tensor of it but what the prompts are through `f`, flat, in one order.
    #[must_use]
    pub(crate) fn map(&self, mut f: impl FnMut(Tensor<1>) -> Tensor<1>) -> Self {
        Self {
            noisy: through(&self.noisy, &mut f),
            timesteps: through(&self.timesteps, &mut f),
            prompts: self.prompts.clone(),
            target: through(&self.target, &mut f),
            weight: through(&self.weight, &mut f),
            mask: self.mask.as_ref().map(|mask| through(mask, &mut f)),
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
    prompts: Prompts,
    mask: Option<Tensor<4>>,
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
        let sizes = [&self.latents, &other.latents].map(|latents| latents.dims());
        sizes[0][1..] == sizes[1][1..] && self.prompts.fits(&other.prompts)
    }

    fn append(&mut self, other: Self) {
        if self.mask.is_some() || other.mask.is_some() {
            self.mask = Some(Tensor::cat(vec![self.counts(), other.counts()], 0));
        }
        self.latents = Tensor::cat(vec![self.latents.clone(), other.latents], 0);
        self.prompts = self.prompts.clone().cat(other.prompts);
        self.shares.extend(other.shares);
    }

    /// What each latent counts, `[b, 1, h, w]`.
    fn counts(&self) -> Tensor<4> {
        let ones = || self.latents.clone().narrow(1, 0, 1).ones_like();
        self.mask.clone().unwrap_or_else(ones)
    }

    fn noised(self, schedule: &Ddpm, objective: &ObjectiveConfig, draws: &mut Draws) -> Batch {
        let Self { latents, prompts, mask, shares } = self;
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
            prompts,
            timesteps: timesteps.float(),
            mask,
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
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::path::Path;

    use image::{Rgba, RgbaImage};
    use soda_models::pipeline::Pipeline;
    use soda_models::scheduler::SchedulerConfig;

    use super::*;
    use crate::config::{apply_setting, preset};
    use crate::data::dataset::Example;
    use crate::data::encode::EncodeConfig;

    /// Several shapes, masks on some pictures, a class without: each batch has one shape, each sample its share, and
    /// only what is masked is weighted.
    #[test]
    fn a_step_has_its_samples_in_batches_of_one_shape() {
        let folder = tempfile::tempdir().unwrap();
        let example = |name: &str, width, height, opaque| {
            let image = folder.path().join(name);
            let colour = |x: u32, y: u32| {
                Rgba([(3 * x) as u8, (2 * y) as u8, 90, if x < opaque { 255 } else { 0 }])
            };
            RgbaImage::from_fn(width, height, colour).save(&image).unwrap();
            Example { image, caption: "a mug".to_owned(), repeats: 1 }
        };
        let examples = [example("a.png", 60, 60, 30), example("b.png", 80, 48, 80)];
        let class = [example("c.png", 60, 60, 30), example("d.png", 48, 80, 0)];
        let mut table = preset("toybox").unwrap();
        for setting in [
            "base=b",
            "data=d",
            "batch_size=3",
            "accumulation=4",
            "buckets.step=8",
            "masks.source=alpha",
            "masks.unmasked_weight=0.25",
            "prior.prompt=a mug",
            "prior.weight=0.5",
        ] {
            apply_setting(&mut table, setting).unwrap();
        }
        let config = TrainConfig::from_table(table).unwrap();
        let toybox = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/toybox/base");
        let pipeline = Pipeline::load(&toybox, &Device::default()).unwrap();
        let encode = |examples: &[Example], config| {
            EncodedDataset::new(&pipeline, examples, &config, None, &mut |_, _| ()).unwrap()
        };
        let own = EncodeConfig::from_train_config(&config);
        let (data, class) = (encode(&examples, own.clone()), encode(&class, own.without_masks()));
        let schedule = pipeline.noise_schedule();
        let mut sides = Vec::new();
        for step in 0..4 {
            let batches = Batch::sample(&data, Some(&class), &schedule, &config, step);
            assert_eq!(batches.iter().map(Batch::len).sum::<usize>(), 24);
            let sum: f32 =
                batches.iter().map(|batch| batch.weight.clone().sum().into_scalar::<f32>()).sum();
            assert!((sum - 1.5).abs() < 1e-5, "{sum}");
            for batch in &batches {
                let shape = batch.noisy.dims();
                assert_eq!(shape, batch.target.dims());
                sides.push([shape[3] * 4, shape[2] * 4]);
                let weights: Vec<f32> = batch.weight.clone().into_data().iter().collect();
                for (row, weight) in weights.into_iter().enumerate() {
                    let Some(mask) = &batch.mask else { continue };
                    let mask = mask.clone().narrow(0, row, 1);
                    assert_eq!(mask.dims(), [1, 1, shape[2], shape[3]]);
                    let mean = mask.mean().into_scalar::<f32>();
                    // A square of the subject is half white; all others count wholly.
                    let own = weight > 0.06 && shape[2] == shape[3];
                    assert!((mean - if own { 0.625 } else { 1.0 }).abs() < 1e-6, "{mean}");
                }
            }
            assert!(batches.iter().any(|batch| batch.mask.is_some()) || step > 0);
        }
        sides.sort_unstable();
        sides.dedup();
        assert_eq!(sides, [[48, 80], [64, 64], [80, 48]]);
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
        let drawn = draw_timesteps(500, &schedule, &objective, &mut generator(0, 0));
        for t in 200..203 {
            assert!(drawn.contains(&t));
        }
        assert!(drawn.iter().all(|t| (200..203).contains(t)));
    }
}
