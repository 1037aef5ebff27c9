//! Training noise, and ancestral sampling.
//!
//! "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239). Mirrors diffusers'
//! `DDPMScheduler` with the variance type `fixed_small`.

use burn::tensor::{Int, Tensor, TensorData};

use crate::scheduler::beta::NoiseSchedule;
use crate::scheduler::config::{PredictionType, SchedulerConfig};
use crate::scheduler::sampler::{Sampler, SamplerKind};
use crate::scheduler::spacing::{rounded, spaced};

/// The forward process, and its reversal one step at a time.
#[derive(Debug, Clone)]
pub struct Ddpm {
    /// The noise schedule.
    pub schedule: NoiseSchedule,
    config: SchedulerConfig,
}

impl Ddpm {
    /// The process that a config describes.
    pub fn new(config: &SchedulerConfig) -> Self {
        Self { schedule: NoiseSchedule::new(config), config: config.clone() }
    }

    /// Number of timesteps that the network was trained on.
    pub fn num_train_timesteps(&self) -> usize {
        self.schedule.len()
    }

    /// Samples the forward process: `sqrt(abar_t) x0 + sqrt(1 - abar_t) noise`.
    ///
    /// `x0`, `noise`: `[b, c, h, w]`; `timesteps`: `[b]`, one for each sample.
    pub fn add_noise(
        &self,
        x0: Tensor<4>,
        noise: Tensor<4>,
        timesteps: Tensor<1, Int>,
    ) -> Tensor<4> {
        let (signal, sigma) = self.signal_and_sigma(timesteps);
        x0 * signal + noise * sigma
    }

    /// What the network should predict: the noise, the velocity `sqrt(abar) noise - sigma x0`, or
    /// the picture.
    ///
    /// `x0`, `noise`: `[b, c, h, w]`; `timesteps`: `[b]`, one for each sample.
    pub fn target(&self, x0: Tensor<4>, noise: Tensor<4>, timesteps: Tensor<1, Int>) -> Tensor<4> {
        match self.schedule.prediction_type {
            PredictionType::Epsilon => noise,
            PredictionType::Sample => x0,
            PredictionType::VPrediction => {
                let (signal, sigma) = self.signal_and_sigma(timesteps);
                noise * signal - x0 * sigma
            }
        }
    }

    /// `sqrt(abar_t)` and `sqrt(1 - abar_t)` of timesteps `[b]`, each `[b, 1, 1, 1]`.
    fn signal_and_sigma(&self, timesteps: Tensor<1, Int>) -> (Tensor<4>, Tensor<4>) {
        let alphas = self.schedule.alphas_cumprod.clone();
        let (count, steps) = (alphas.len(), timesteps.dims()[0]);
        let device = timesteps.device();
        let alphas = Tensor::<1>::from_data(TensorData::new(alphas, [count]), &device);
        let abar = alphas.select(0, timesteps).reshape([steps, 1, 1, 1]);
        // One minus abar in f32, as diffusers has it.
        (abar.clone().sqrt(), abar.neg().add_scalar(1.0).sqrt())
    }
}

/// Ancestral sampling: a plan of timesteps, each with fresh noise but the last.
#[derive(Debug, Clone)]
pub struct DdpmSampler {
    timesteps: Vec<f64>,
    process: Ddpm,
}

impl DdpmSampler {
    /// Plans `steps` steps.
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Self {
        let process = Ddpm::new(config);
        let (spacing, total) = (config.spacing(SamplerKind::Ddpm), process.num_train_timesteps());
        Self { timesteps: rounded(spaced(spacing, total, steps, config.steps_offset)), process }
    }
}

impl Sampler for DdpmSampler {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn levels(&self, call: usize) -> (f64, f64) {
        self.process.schedule.levels(self.timesteps[call] as usize)
    }

    fn step(
        &mut self,
        call: usize,
        prediction: Tensor<4>,
        sample: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let Ddpm { schedule, config } = &self.process;
        let t = self.timesteps[call] as usize;
        let abar = schedule.alpha_cumprod(t);
        let next = self.timesteps.get(call + 1);
        let abar_next = next.map_or(1.0, |t| schedule.alpha_cumprod(*t as usize));
        let (alpha, beta) = (abar / abar_next, 1.0 - abar / abar_next);

        let (x0, _) = schedule.split(prediction, t, sample.clone());
        let x0 = config.clip(x0);
        // Formula (7): the posterior's mean and variance.
        let from_x0 = abar_next.sqrt() * beta / (1.0 - abar);
        let from_sample = alpha.sqrt() * (1.0 - abar_next) / (1.0 - abar);
        let mean = x0.mul_scalar(from_x0) + sample.mul_scalar(from_sample);
        let variance = (1.0 - abar_next) / (1.0 - abar) * beta;
        if next.is_some() && t > 0 { mean + noise().mul_scalar(variance.sqrt()) } else { mean }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::noise::gaussian;

    fn process(prediction_type: PredictionType) -> Ddpm {
        let config = SchedulerConfig {
            prediction_type,
            clip_sample: Some(false),
            ..SchedulerConfig::default()
        };
        Ddpm::new(&config)
    }

    fn ints<const N: usize>(values: [i32; N]) -> Tensor<1, Int> {
        Tensor::from_ints(values, &Device::default())
    }

    fn distance(a: Tensor<4>, b: Tensor<4>) -> f64 {
        soda_testing::max_abs((a - b).into_data().iter::<f32>())
    }

    #[test]
    fn the_true_prediction_gives_back_x0_and_the_noise() {
        let device = Device::default();
        for kind in [PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample] {
            let ddpm = process(kind);
            let x0 = gaussian::<4>(0, 0, [3, 4, 5, 5], &device);
            let noise = gaussian::<4>(0, 1, [3, 4, 5, 5], &device);
            for t in [1, 10, 500] {
                let steps = ints([t; 3]);
                let noisy = ddpm.add_noise(x0.clone(), noise.clone(), steps.clone());
                let truth = ddpm.target(x0.clone(), noise.clone(), steps);
                let (x0_hat, noise_hat) = ddpm.schedule.split(truth, t as usize, noisy);
                assert!(distance(x0_hat, x0.clone()) < 1e-4, "{kind:?} {t}");
                assert!(distance(noise_hat, noise.clone()) < 1e-4, "{kind:?} {t}");
            }
        }
    }

    #[test]
    fn the_last_step_with_the_true_prediction_is_x0() {
        let device = Device::default();
        let process = process(PredictionType::Epsilon);
        let mut sampler = DdpmSampler { timesteps: vec![20.0], process };
        let x0 = gaussian::<4>(1, 0, [1, 4, 5, 5], &device);
        let noise = gaussian::<4>(1, 1, [1, 4, 5, 5], &device);
        let noisy = sampler.add_noise(0, x0.clone(), noise.clone());
        let out = sampler.step(0, noise, noisy, &mut || unreachable!());
        assert!(distance(out, x0) < 1e-4);
    }

    #[test]
    fn each_sample_has_its_own_timestep() {
        let device = Device::default();
        let ddpm = process(PredictionType::Epsilon);
        let x0 = gaussian::<4>(2, 0, [2, 1, 2, 2], &device);
        let noise = gaussian::<4>(2, 1, [2, 1, 2, 2], &device);
        let both = ddpm.add_noise(x0.clone(), noise.clone(), ints([5, 700]));
        for (i, t) in [5, 700].into_iter().enumerate() {
            let one = |x: &Tensor<4>| x.clone().narrow(0, i, 1);
            let alone = ddpm.add_noise(one(&x0), one(&noise), ints([t]));
            assert_eq!(distance(one(&both), alone), 0.0);
        }
    }
}
