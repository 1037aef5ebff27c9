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

    /// The timesteps as the denoiser takes them, `[b]`, of timesteps `[b]` of the schedule.
    ///
    /// A model of flow matching takes its noise level, times the number of timesteps.
    pub fn denoiser_timesteps(&self, timesteps: Tensor<1, Int>) -> Tensor<1> {
        match &self.schedule.flow_sigmas {
            None => timesteps.float(),
            Some(sigmas) => {
                let table = TensorData::new(sigmas.clone(), [sigmas.len()]);
                let table = Tensor::<1>::from_data(table, &timesteps.device());
                table.select(0, timesteps).mul_scalar(sigmas.len() as f64)
            }
        }
    }

    /// Adds noise: `sqrt(abar_t) x0 + sqrt(1 - abar_t) noise`, or `(1 - sigma_t) x0 + sigma_t noise` for
    /// models of flow matching.
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
    /// | `Flow` | `noise - x0` |
    ///
    /// `x0` and `noise` are `[b, c, h, w]`, and `timesteps` is `[b]`, one for each sample. Returns `[b, c, h,
    /// w]`.
    pub fn target(&self, x0: Tensor<4>, noise: Tensor<4>, timesteps: Tensor<1, Int>) -> Tensor<4> {
        match self.schedule.prediction_type {
            PredictionType::Epsilon => noise,
            PredictionType::Sample => x0,
            PredictionType::Flow => noise - x0,
            PredictionType::VPrediction => {
                let (signal, sigma) = self.signal_and_sigma(timesteps);
                noise * signal - x0 * sigma
            }
        }
    }

    /// The factors of image and noise at timesteps `[b]`, each `[b, 1, 1, 1]`.
    fn signal_and_sigma(&self, timesteps: Tensor<1, Int>) -> (Tensor<4>, Tensor<4>) {
        let device = timesteps.device();
        let at = |table: &[f32]| {
            let steps = timesteps.dims()[0];
            let table = TensorData::new(table.to_vec(), [table.len()]);
            let table = Tensor::<1>::from_data(table, &device);
            table.select(0, timesteps.clone()).reshape([steps, 1, 1, 1])
        };
        if let Some(sigmas) = &self.schedule.flow_sigmas {
            let sigma: Tensor<4> = at(sigmas);
            return (sigma.clone().neg().add_scalar(1.0), sigma);
        }
        let abar: Tensor<4> = at(&self.schedule.alphas_cumprod);
        // `1 - abar` is computed in f32, as in diffusers.
        (abar.clone().sqrt(), abar.neg().add_scalar(1.0).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::noise::randn;
    use crate::scheduler::sampler_kind::SamplerKind;

    fn process(prediction_type: PredictionType) -> ForwardProcess {
        let class = match prediction_type {
            PredictionType::Flow => SamplerKind::FlowMatchEuler,
            _ => SamplerKind::Ddim,
        };
        let config = SchedulerConfig {
            class,
            shift: 3.0,
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
        use PredictionType::*;
        for kind in [Epsilon, VPrediction, Sample, Flow] {
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
    fn flow_matching_goes_straight_from_the_image_to_noise() {
        let device = Device::default();
        let flow = process(PredictionType::Flow);
        let x0 = randn::<4>(1, 0, [2, 1, 2, 2], &device);
        let noise = randn::<4>(1, 1, [2, 1, 2, 2], &device);
        // The noise level 0.5 is 0.75 after a shift of 3, and the last one is 1.
        let noisy = flow.add_noise(x0.clone(), noise.clone(), ints([499, 999]));
        let middle = x0.clone().mul_scalar(0.25) + noise.clone().mul_scalar(0.75);
        let row = |x: &Tensor<4>, i| x.clone().narrow(0, i, 1);
        assert!(distance(row(&noisy, 0), row(&middle, 0)) < 1e-6);
        assert!(distance(row(&noisy, 1), row(&noise, 1)) < 1e-6);
        assert!((flow.schedule.snr(499) - 1.0 / 9.0).abs() < 1e-6);
        assert_eq!(flow.schedule.snr(999), 0.0);
        let times: Vec<f32> =
            flow.denoiser_timesteps(ints([499, 999])).into_data().iter().collect();
        assert_eq!(times, [750.0, 1000.0]);
        let target = flow.target(x0.clone(), noise.clone(), ints([3, 4]));
        assert_eq!(distance(target, noise - x0), 0.0);
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
