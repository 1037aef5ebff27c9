//! Training noise, and ancestral sampling.
//!
//! "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239). Mirrors diffusers'
//! `DDPMScheduler` with the variance type `fixed_small`.

use burn::tensor::{Int, Tensor, TensorData};

use crate::scheduler::beta::NoiseSchedule;
use crate::scheduler::config::{PredictionType, SchedulerConfig};

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

    /// What the network should predict: the noise, or the velocity `sqrt(abar) noise - sigma x0`.
    ///
    /// `x0`, `noise`: `[b, c, h, w]`; `timesteps`: `[b]`, one for each sample.
    pub fn target(&self, x0: Tensor<4>, noise: Tensor<4>, timesteps: Tensor<1, Int>) -> Tensor<4> {
        match self.schedule.prediction_type {
            PredictionType::Epsilon => noise,
            PredictionType::VPrediction => {
                let (signal, sigma) = self.signal_and_sigma(timesteps);
                noise * signal - x0 * sigma
            }
        }
    }

    /// One step of ancestral sampling, from `t` to `previous` (`None`: to `x0`).
    ///
    /// `prediction`, `sample`, `noise`: `[b, c, h, w]`; the last step uses no noise.
    pub fn step(
        &self,
        prediction: Tensor<4>,
        t: usize,
        previous: Option<usize>,
        sample: Tensor<4>,
        noise: Tensor<4>,
    ) -> Tensor<4> {
        let abar = self.schedule.alpha_cumprod(t);
        let abar_previous = previous.map_or(1.0, |t| self.schedule.alpha_cumprod(t));
        let (alpha, beta) = (abar / abar_previous, 1.0 - abar / abar_previous);

        let (x0, _) = self.schedule.split(prediction, t, sample.clone());
        let x0 = self.config.clip(x0);
        // Formula (7): the posterior's mean and variance.
        let from_x0 = abar_previous.sqrt() * beta / (1.0 - abar);
        let from_sample = alpha.sqrt() * (1.0 - abar_previous) / (1.0 - abar);
        let mean = x0.mul_scalar(from_x0) + sample.mul_scalar(from_sample);
        match previous {
            None => mean,
            Some(_) => {
                let variance = (1.0 - abar_previous) / (1.0 - abar) * beta;
                mean + noise.mul_scalar(variance.sqrt())
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

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::noise::gaussian;

    fn process(prediction_type: PredictionType) -> Ddpm {
        let config =
            SchedulerConfig { prediction_type, clip_sample: false, ..SchedulerConfig::default() };
        Ddpm::new(&config)
    }

    fn ints<const N: usize>(values: [i32; N]) -> Tensor<1, Int> {
        Tensor::from_ints(values, &Device::default())
    }

    fn distance(a: Tensor<4>, b: Tensor<4>) -> f32 {
        (a - b).abs().max().into_scalar()
    }

    #[test]
    fn the_true_prediction_gives_back_x0_and_the_noise() {
        let device = Device::default();
        for kind in [PredictionType::Epsilon, PredictionType::VPrediction] {
            let ddpm = process(kind);
            let x0 = gaussian::<4>(0, 0, [3, 4, 5, 5], &device);
            let noise = gaussian::<4>(0, 1, [3, 4, 5, 5], &device);
            for t in [0, 10, 500] {
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
        let ddpm = process(PredictionType::Epsilon);
        let x0 = gaussian::<4>(1, 0, [1, 4, 5, 5], &device);
        let noise = gaussian::<4>(1, 1, [1, 4, 5, 5], &device);
        let noisy = ddpm.add_noise(x0.clone(), noise.clone(), ints([20]));
        let out = ddpm.step(noise.clone(), 20, None, noisy, noise);
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
