//! The forward process of diffusion: training noise and training targets.
//!
//! ```text
//! x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps
//! ```
//!
//! "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239), formula (4). Mirrors `add_noise` and
//! `get_velocity` of diffusers' `DDPMScheduler`.

use burn::tensor::{Int, Tensor, TensorData};

use super::config::{PredictionType, SchedulerConfig};
use super::noise_schedule::NoiseSchedule;

/// The forward process: adds noise to images, as a denoiser's training needs it.
#[derive(Debug, Clone)]
pub struct ForwardProcess {
    /// The noise schedule.
    pub schedule: NoiseSchedule,
}

impl ForwardProcess {
    /// Makes the forward process of a config.
    pub fn new(config: &SchedulerConfig) -> Self {
        Self { schedule: NoiseSchedule::new(config) }
    }

    /// Number of timesteps that the denoiser was trained on.
    pub fn num_train_timesteps(&self) -> usize {
        self.schedule.len()
    }

    /// Adds noise: `sqrt(abar_t) x0 + sqrt(1 - abar_t) noise`.
    ///
    /// `x0` and `noise` are `[b, c, h, w]`, and `timesteps` is `[b]`, one for each sample. Returns `[b, c, h,
    /// w]`.
    pub fn add_noise(
        &self,
        x0: Tensor<4>,
        noise: Tensor<4>,
        timesteps: Tensor<1, Int>,
    ) -> Tensor<4> {
        let (signal, sigma) = self.signal_and_sigma(timesteps);
        x0 * signal + noise * sigma
    }

    /// The training target, which the denoiser should predict. The prediction type decides which one:
    ///
    /// | prediction type | target |
    /// | --- | --- |
    /// | `Epsilon` | `noise` |
    /// | `VPrediction` | `sqrt(abar_t) noise - sqrt(1 - abar_t) x0` |
    /// | `Sample` | `x0` |
    ///
    /// `x0` and `noise` are `[b, c, h, w]`, and `timesteps` is `[b]`, one for each sample. Returns `[b, c, h,
    /// w]`.
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
        // `1 - abar` is computed in f32, as in diffusers.
        (abar.clone().sqrt(), abar.neg().add_scalar(1.0).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::noise::randn;

    fn process(prediction_type: PredictionType) -> ForwardProcess {
        let config = SchedulerConfig {
            prediction_type,
            clip_sample: Some(false),
            ..SchedulerConfig::default()
        };
        ForwardProcess::new(&config)
    }

    fn ints<const N: usize>(values: [i32; N]) -> Tensor<1, Int> {
        Tensor::from_ints(values, &Device::default())
    }

    fn distance(a: Tensor<4>, b: Tensor<4>) -> f64 {
        soda_testing::max_abs((a - b).into_data().iter::<f32>())
    }

    #[test]
    fn the_true_prediction_gives_x0_and_noise() {
        let device = Device::default();
        for kind in [PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample] {
            let ddpm = process(kind);
            let x0 = randn::<4>(0, 0, [3, 4, 5, 5], &device);
            let noise = randn::<4>(0, 1, [3, 4, 5, 5], &device);
            for t in [1, 10, 500] {
                let steps = ints([t; 3]);
                let noisy = ddpm.add_noise(x0.clone(), noise.clone(), steps.clone());
                let truth = ddpm.target(x0.clone(), noise.clone(), steps);
                let (x0_hat, noise_hat) =
                    ddpm.schedule.predicted_x0_and_noise(truth, t as usize, noisy);
                assert!(distance(x0_hat, x0.clone()) < 1e-4, "{kind:?} {t}");
                assert!(distance(noise_hat, noise.clone()) < 1e-4, "{kind:?} {t}");
            }
        }
    }

    #[test]
    fn each_sample_has_its_own_timestep() {
        let device = Device::default();
        let ddpm = process(PredictionType::Epsilon);
        let x0 = randn::<4>(2, 0, [2, 1, 2, 2], &device);
        let noise = randn::<4>(2, 1, [2, 1, 2, 2], &device);
        let both = ddpm.add_noise(x0.clone(), noise.clone(), ints([5, 700]));
        for (i, t) in [5, 700].into_iter().enumerate() {
            let one = |x: &Tensor<4>| x.clone().narrow(0, i, 1);
            let alone = ddpm.add_noise(one(&x0), one(&noise), ints([t]));
            assert_eq!(distance(one(&both), alone), 0.0);
        }
    }
}
