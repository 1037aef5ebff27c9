//! The samples of one step: examples, timesteps and noise. All randomness is a function of the seed and the
//! step.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use soda_models::noise::{generator, randn_with};
use soda_models::scheduler::{ForwardProcess, PredictionType};

use crate::config::{ObjectiveConfig, TrainConfig};
use crate::data::encoded_dataset::EncodedDataset;
use crate::data::prompts::{Prompts, map_flattened};
use crate::data::rng;
use crate::data::sampler::{Streams, select};

/// Noisy latents of one size, the targets of their predictions and their weights in the loss.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The noisy latents `x_t`, `[b, c, h, w]`.
    pub noisy: Tensor<4>,
    /// The timesteps `t`, `[b]`, as floats, which the denoiser takes.
    pub timesteps: Tensor<1>,
    /// The captions.
    pub prompts: Prompts,
    /// The target `ε`, `v` or `x_0`, by the model's prediction type, `[b, c, h, w]`.
    pub target: Tensor<4>,
    /// The weight of each sample in the loss, `[b]`. Weights of `1 / b` give the mean.
    pub weight: Tensor<1>,
    /// The weight of each latent in its sample's loss, `[b, 1, h, w]`. Without it all weights are 1.
    pub mask: Option<Tensor<4>>,
}

impl Batch {
    /// Draws the samples of `step`, from 0: `accumulation * batch_size * ranks` examples of `data`, and as
    /// many class images if there are any. Consecutive samples of one size are merged into one batch.
    pub fn sample(
        data: &EncodedDataset,
        class: Option<&EncodedDataset>,
        schedule: &ForwardProcess,
        config: &TrainConfig,
        step: usize,
    ) -> Vec<Self> {
        let seed = config.seed;
        let stream = |stream: u64| generator(seed, stream + step as u64);
        let (size, count) = (config.global_batch_size(), config.accumulation);
        let weight = 1.0 / (size * count) as f64;
        let mut variant = stream(rng::VARIANT);
        let mut clean: Vec<CleanSamples> = Vec::new();
        let mut take = |data: &EncodedDataset, streams: Streams, posterior: u64, weight: f64| {
            let mut posterior = stream(posterior);
            for (bucket, positions) in select(&data.lens(), size, count, step, streams) {
                let rows = data.rows(bucket, &positions, &mut variant);
                let next = CleanSamples {
                    latents: data.latents(&rows, &mut posterior),
                    prompts: data.prompts(&rows),
                    mask: data.mask(&rows),
                    weights: vec![weight; rows.len()],
                };
                match clean.last_mut() {
                    Some(last) if last.can_join(&next) => last.append(next),
                    _ => clean.push(next),
                }
            }
        };
        let streams = Streams { seed, examples: rng::ORDER, buckets: rng::BUCKET };
        take(data, streams, rng::POSTERIOR, weight);
        if let (Some(class), Some(prior)) = (class, &config.prior) {
            let (examples, buckets) = (rng::CLASS_ORDER, rng::CLASS_BUCKET);
            let streams = Streams { seed, examples, buckets };
            take(class, streams, rng::CLASS_POSTERIOR, weight * prior.weight);
        }
        let mut generators = Generators {
            timesteps: stream(rng::TIMESTEP),
            noise: stream(rng::NOISE),
            offset: stream(rng::OFFSET),
        };
        let objective = &config.objective;
        clean
            .into_iter()
            .map(|clean| clean.with_noise(schedule, objective, &mut generators))
            .collect()
    }

    /// The samples of rank `rank` of `world`, of the batches of a step: consecutive rows of each batch, with
    /// their weights in the loss of the whole step.
    ///
    /// The batches are those of all ranks, so that noise and timesteps of a sample do not depend on the
    /// number of ranks. A rank gets no batch that is too small for all.
    pub(crate) fn share(batches: Vec<Self>, rank: usize, world: usize) -> Vec<Self> {
        let share = |batch: Self| {
            let rows = batch.len() * rank / world..batch.len() * (rank + 1) / world;
            (!rows.is_empty()).then(|| batch.rows(rows))
        };
        match world {
            1 => batches,
            _ => batches.into_iter().filter_map(share).collect(),
        }
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Whether there are no samples. [`Batch::sample`] never returns an empty batch.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The samples in this range, with their weights in the loss.
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

    /// The upper left parts of the samples, with latents of this height and width. They are at most those of
    /// the batch.
    #[must_use]
    pub(crate) fn cropped(&self, [height, width]: [usize; 2]) -> Self {
        let crop = |x: &Tensor<4>| x.clone().narrow(2, 0, height).narrow(3, 0, width);
        Self {
            noisy: crop(&self.noisy),
            target: crop(&self.target),
            mask: self.mask.as_ref().map(crop),
            ..self.clone()
        }
    }

    /// Multiplies the weights of all samples by `scale`.
    #[must_use]
    pub(crate) fn weighted(&self, scale: f32) -> Self {
        Self { weight: self.weight.clone().mul_scalar(scale), ..self.clone() }
    }

    /// Applies `f` to each tensor except the captions', flattened, always in the same order.
    #[must_use]
    pub(crate) fn map(&self, mut f: impl FnMut(Tensor<1>) -> Tensor<1>) -> Self {
        Self {
            noisy: map_flattened(&self.noisy, &mut f),
            timesteps: map_flattened(&self.timesteps, &mut f),
            prompts: self.prompts.clone(),
            target: map_flattened(&self.target, &mut f),
            weight: map_flattened(&self.weight, &mut f),
            mask: self.mask.as_ref().map(|mask| map_flattened(mask, &mut f)),
        }
    }

    /// Splits the samples into at most `count` batches of nearly equal size, none empty, in order.
    pub(crate) fn split(&self, count: usize) -> Vec<Self> {
        let (len, count) = (self.len(), count.clamp(1, self.len().max(1)));
        (0..count).map(|i| self.rows(len * i / count..len * (i + 1) / count)).collect()
    }
}

/// Samples of one size before noise is added.
struct CleanSamples {
    latents: Tensor<4>,
    prompts: Prompts,
    mask: Option<Tensor<4>>,
    /// The weights in the loss, without those of the timesteps.
    weights: Vec<f64>,
}

/// The random generators of a step, which its samples use one after the other.
struct Generators {
    timesteps: ChaCha8Rng,
    noise: ChaCha8Rng,
    offset: ChaCha8Rng,
}

impl CleanSamples {
    fn can_join(&self, other: &Self) -> bool {
        let sizes = [&self.latents, &other.latents].map(|latents| latents.dims());
        sizes[0][1..] == sizes[1][1..] && self.prompts.can_join(&other.prompts)
    }

    fn append(&mut self, other: Self) {
        if self.mask.is_some() || other.mask.is_some() {
            self.mask = Some(Tensor::cat(vec![self.mask_or_ones(), other.mask_or_ones()], 0));
        }
        self.latents = Tensor::cat(vec![self.latents.clone(), other.latents], 0);
        self.prompts = self.prompts.clone().cat(other.prompts);
        self.weights.extend(other.weights);
    }

    /// The weight of each latent, `[b, 1, h, w]`.
    fn mask_or_ones(&self) -> Tensor<4> {
        let ones = || self.latents.clone().narrow(1, 0, 1).ones_like();
        self.mask.clone().unwrap_or_else(ones)
    }

    /// Adds noise at random timesteps and weights each sample by its timestep.
    fn with_noise(
        self,
        schedule: &ForwardProcess,
        objective: &ObjectiveConfig,
        generators: &mut Generators,
    ) -> Batch {
        let Self { latents, prompts, mask, weights } = self;
        let (count, device) = (weights.len(), latents.device());
        let steps = sample_timesteps(count, schedule, objective, &mut generators.timesteps);
        let weight: Vec<f32> = weights
            .iter()
            .zip(&steps)
            .map(|(weight, &t)| (weight * snr_weight(schedule, objective, t as usize)) as f32)
            .collect();
        let timesteps: Tensor<1, Int> = Tensor::from_data(TensorData::new(steps, [count]), &device);
        let noise = sample_noise(latents.dims(), objective, generators, &device);
        Batch {
            noisy: schedule.add_noise(latents.clone(), noise.clone(), timesteps.clone()),
            target: schedule.target(latents, noise, timesteps.clone()),
            weight: Tensor::from_data(TensorData::new(weight, [count]), &device),
            prompts,
            timesteps: schedule.denoiser_timesteps(timesteps),
            mask,
        }
    }
}

/// Draws `count` timesteps from the range that is trained.
fn sample_timesteps(
    count: usize,
    schedule: &ForwardProcess,
    objective: &ObjectiveConfig,
    rng: &mut impl Rng,
) -> Vec<i64> {
    let [first, end] = objective.timesteps.unwrap_or([0, schedule.num_train_timesteps()]);
    let uniform = objective.logit_normal.is_none() && objective.timestep_shift.is_none();
    let mut draw = || match uniform {
        true => rng.random_range(first as i64..end as i64),
        false => {
            let share = sample_share(objective, rng);
            (first + (share * (end - first) as f64) as usize).min(end - 1) as i64
        }
    };
    (0..count).map(|_| draw()).collect()
}

/// Draws where a timestep lies in its range, from 0 to 1: uniformly or from a logit-normal density, then
/// with shifted odds.
fn sample_share(objective: &ObjectiveConfig, rng: &mut impl Rng) -> f64 {
    let share = match objective.logit_normal {
        Some([mean, std]) => {
            let normal: f64 = rng.sample(StandardNormal);
            1.0 / (1.0 + (-mean - std * normal).exp())
        }
        None => rng.random(),
    };
    let shift = objective.timestep_shift.unwrap_or(1.0);
    shift * share / (1.0 + (shift - 1.0) * share)
}

/// Draws standard normal noise, plus a shift of whole channels (Guttenberg, "Diffusion with offset noise",
/// 2023).
fn sample_noise(
    shape: [usize; 4],
    objective: &ObjectiveConfig,
    generators: &mut Generators,
    device: &Device,
) -> Tensor<4> {
    let noise = randn_with(&mut generators.noise, shape, device);
    if objective.noise_offset == 0.0 {
        return noise;
    }
    let [batch, channels, _, _] = shape;
    let shift: Tensor<4> = randn_with(&mut generators.offset, [batch, channels, 1, 1], device);
    noise + shift.mul_scalar(objective.noise_offset)
}

/// The Min-SNR weight of timestep `t` (Hang et al., arXiv 2303.09556): the error `|x0 - x̂0|²` has the weight
/// `min(SNR, γ)`, converted to the error of the model's prediction type.
fn snr_weight(schedule: &ForwardProcess, objective: &ObjectiveConfig, t: usize) -> f64 {
    let Some(gamma) = objective.min_snr_gamma else { return 1.0 };
    let snr = schedule.schedule.snr(t);
    match schedule.schedule.prediction_type {
        // |ε - ε̂|² = SNR |x0 - x̂0|², |v - v̂|² = (SNR + 1) |x0 - x̂0|².
        PredictionType::Epsilon => snr.min(gamma) / snr,
        PredictionType::VPrediction => snr.min(gamma) / (snr + 1.0),
        PredictionType::Sample => snr.min(gamma),
        // |x0 - x̂0|² = σ² |v - v̂|² with σ = 1 / (1 + √SNR).
        PredictionType::Flow => snr.min(gamma) / (1.0 + snr.sqrt()).powi(2),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use image::{Rgba, RgbaImage};
    use soda_models::pipeline::Pipeline;
    use soda_models::scheduler::SchedulerConfig;

    use super::*;
    use crate::config::{apply_setting, preset};
    use crate::data::encode::{EncodeConfig, EncodeOptions};
    use crate::data::folder::Example;

    /// Images of several shapes, some with masks, and class images without: each batch has one shape, and the
    /// weights of samples and latents are as configured.
    #[test]
    fn batches_have_one_shape_and_the_configured_weights() {
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
        let toybox = soda_testing::workspace_path("examples/toybox/base");
        let pipeline = Pipeline::load(&toybox, &Device::default()).unwrap();
        let encode = |examples: &[Example], config| {
            EncodedDataset::new(&pipeline, examples, &config, EncodeOptions::default()).unwrap()
        };
        let own = EncodeConfig::from_train_config(&config);
        let (data, class) = (encode(&examples, own.clone()), encode(&class, own.without_masks()));
        let schedule = pipeline.forward_process();
        let mut sides = Vec::new();
        for step in 0..4 {
            let batches = Batch::sample(&data, Some(&class), &schedule, &config, step);
            assert_eq!(batches.iter().map(Batch::len).sum::<usize>(), 24);
            let sum: f32 =
                batches.iter().map(|batch| batch.weight.clone().sum().into_scalar::<f32>()).sum();
            assert!((sum - 1.5).abs() < 1e-5, "{sum}");
            for world in [2, 5] {
                let share = |rank| Batch::share(batches.clone(), rank, world);
                let shares: Vec<_> = (0..world).flat_map(share).collect();
                let values = |batches: &[Batch]| -> Vec<f32> {
                    let of = |batch: &Batch| batch.noisy.clone().into_data().iter().collect();
                    let mut values: Vec<f32> = batches.iter().flat_map::<Vec<f32>, _>(of).collect();
                    values.sort_by(f32::total_cmp);
                    values
                };
                assert_eq!(values(&shares), values(&batches), "{world} ranks");
            }
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
                    // Square images of the subject have a half-white mask. All others have none.
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
        let schedule = ForwardProcess::new(&SchedulerConfig::default());
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
        let schedule = ForwardProcess::new(&SchedulerConfig::default());
        let objective = ObjectiveConfig { timesteps: Some([200, 203]), ..Default::default() };
        let drawn = sample_timesteps(500, &schedule, &objective, &mut generator(0, 0));
        for t in 200..203 {
            assert!(drawn.contains(&t));
        }
        assert!(drawn.iter().all(|t| (200..203).contains(t)));
    }
}
