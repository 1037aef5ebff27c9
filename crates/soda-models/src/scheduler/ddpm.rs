//! DDPM, ancestral sampling.
//!
//! "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239), formula (7). Mirrors `step` of diffusers'
//! `DDPMScheduler` with the variance type `fixed_small`.

use burn::tensor::Tensor;

use super::config::SchedulerConfig;
use super::noise_schedule::NoiseSchedule;
use super::sampler::Sampler;
use super::sampler_kind::SamplerKind;
use super::spacing::{rounded, spaced};

/// The timesteps of a DDPM run. Every step but the last adds fresh noise.
#[derive(Debug, Clone)]
pub(crate) struct Ddpm {
    timesteps: Vec<f64>,
    schedule: NoiseSchedule,
    config: SchedulerConfig,
}

impl Ddpm {
    /// Plans `steps` steps.
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Self {
        let schedule = NoiseSchedule::new(config);
        let (spacing, total) = (config.spacing(SamplerKind::Ddpm), schedule.len());
        let timesteps = rounded(spaced(spacing, total, steps, config.steps_offset));
        Self { timesteps, schedule, config: config.clone() }
    }
}

impl Sampler for Ddpm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn alpha_and_sigma(&self, call: usize) -> (f64, f64) {
        self.schedule.alpha_and_sigma(self.timesteps[call] as usize)
    }

    fn step(
        &mut self,
        call: usize,
        prediction: Tensor<4>,
        sample: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let (schedule, config) = (&self.schedule, &self.config);
        let t = self.timesteps[call] as usize;
        let abar = schedule.alpha_cumprod(t);
        let next = self.timesteps.get(call + 1);
        let abar_next = next.map_or(1.0, |t| schedule.alpha_cumprod(*t as usize));
        let (alpha, beta) = (abar / abar_next, 1.0 - abar / abar_next);

        let (x0, _) = schedule.predicted_x0_and_noise(prediction, t, sample.clone());
        let x0 = config.clip(x0);
        // Formula (7): mean and variance of the posterior.
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
    use crate::noise::randn;

    fn distance(a: Tensor<4>, b: Tensor<4>) -> f64 {
        soda_testing::max_abs((a - b).into_data().iter::<f32>())
    }

    #[test]
    fn the_last_step_with_the_true_prediction_gives_x0() {
        let device = Device::default();
        let config = SchedulerConfig { clip_sample: Some(false), ..SchedulerConfig::default() };
        let schedule = NoiseSchedule::new(&config);
        let mut sampler = Ddpm { timesteps: vec![20.0], schedule, config };
        let x0 = randn::<4>(1, 0, [1, 4, 5, 5], &device);
        let noise = randn::<4>(1, 1, [1, 4, 5, 5], &device);
        let noisy = sampler.add_noise(0, x0.clone(), noise.clone());
        let out = sampler.step(0, noise, noisy, &mut || unreachable!());
        assert!(distance(out, x0) < 1e-4);
    }
}
