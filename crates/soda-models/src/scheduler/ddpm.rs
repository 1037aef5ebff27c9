//! Training noise, and ancestral sampling.
//!
//! "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239). Mirrors diffusers'
//! `DDPMScheduler` with the variance type `fixed_small`.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::scheduler::beta::NoiseSchedule;
use crate::scheduler::config::{PredictionType, SchedulerConfig};

/// Samples the forward process: `sqrt(abar_t) x0 + sqrt(1 - abar_t) noise`.
///
/// `x0`, `noise`: `[b, c, h, w]`; `timesteps`: one for each sample.
///
/// # Panics
///
/// If there are not `b` timesteps, or one is beyond the schedule.
pub fn add_noise(
    schedule: &NoiseSchedule,
    x0: Tensor<4>,
    noise: Tensor<4>,
    timesteps: &[usize],
) -> Tensor<4> {
    let (signal, sigma) = signal_and_sigma(schedule, timesteps, &x0.device());
    x0 * signal + noise * sigma
}

/// What the network should predict: the noise, or the velocity `sqrt(abar) noise - sigma x0`.
///
/// Arguments as in [`add_noise`].
pub fn target(
    schedule: &NoiseSchedule,
    x0: Tensor<4>,
    noise: Tensor<4>,
    timesteps: &[usize],
) -> Tensor<4> {
    match schedule.prediction_type {
        PredictionType::Epsilon => noise,
        PredictionType::VPrediction => {
            let (signal, sigma) = signal_and_sigma(schedule, timesteps, &x0.device());
            noise * signal - x0 * sigma
        }
    }
}

/// The timesteps as the network takes them: `[b]`.
pub fn timestep_tensor(timesteps: &[usize], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = timesteps.iter().map(|t| *t as i32).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// One step of ancestral sampling, from `t` to `previous` (`None`: to `x0`).
///
/// `prediction`, `sample`, `noise`: `[b, c, h, w]`; the noise is not used in the last step.
pub fn step(
    schedule: &NoiseSchedule,
    config: &SchedulerConfig,
    prediction: Tensor<4>,
    t: usize,
    previous: Option<usize>,
    sample: Tensor<4>,
    noise: Tensor<4>,
) -> Tensor<4> {
    let abar = f64::from(schedule.alphas_cumprod[t]);
    let abar_previous = previous.map_or(1.0, |t| f64::from(schedule.alphas_cumprod[t]));
    let (alpha, beta) = (abar / abar_previous, 1.0 - abar / abar_previous);

    let (x0, _) = predicted(schedule, prediction, t, sample.clone());
    let x0 = clip(config, x0);
    // Formula (7): the posterior's mean and variance.
    let from_x0 = abar_previous.sqrt() * beta / (1.0 - abar);
    let from_sample = alpha.sqrt() * (1.0 - abar_previous) / (1.0 - abar);
    let mean = x0.mul_scalar(from_x0) + sample.mul_scalar(from_sample);
    match previous {
        None => mean,
        Some(_) => {
            let variance = (1.0 - abar_previous) / (1.0 - abar) * beta;
            mean + noise.mul_scalar(variance.max(1e-20).sqrt())
        }
    }
}

/// The network's `x0` and noise at timestep `t`, both `[b, c, h, w]`.
pub(crate) fn predicted(
    schedule: &NoiseSchedule,
    prediction: Tensor<4>,
    t: usize,
    sample: Tensor<4>,
) -> (Tensor<4>, Tensor<4>) {
    let abar = f64::from(schedule.alphas_cumprod[t]);
    let (signal, sigma) = (abar.sqrt(), (1.0 - abar).sqrt());
    match schedule.prediction_type {
        PredictionType::Epsilon => {
            let x0 = (sample - prediction.clone().mul_scalar(sigma)).div_scalar(signal);
            (x0, prediction)
        }
        PredictionType::VPrediction => {
            let x0 = sample.clone().mul_scalar(signal) - prediction.clone().mul_scalar(sigma);
            let noise = prediction.mul_scalar(signal) + sample.mul_scalar(sigma);
            (x0, noise)
        }
    }
}

/// Clips a predicted `x0` if the config asks for it.
pub(crate) fn clip(config: &SchedulerConfig, x0: Tensor<4>) -> Tensor<4> {
    if config.clip_sample {
        x0.clamp(-config.clip_sample_range, config.clip_sample_range)
    } else {
        x0
    }
}

/// `sqrt(abar_t)` and `sqrt(1 - abar_t)` for each sample, `[b, 1, 1, 1]`.
fn signal_and_sigma(
    schedule: &NoiseSchedule,
    timesteps: &[usize],
    device: &Device,
) -> (Tensor<4>, Tensor<4>) {
    let column = |f: fn(f32) -> f32| {
        let values: Vec<f32> = timesteps.iter().map(|t| f(schedule.alphas_cumprod[*t])).collect();
        Tensor::from_data(TensorData::new(values, [timesteps.len(), 1, 1, 1]), device)
    };
    (column(f32::sqrt), column(|abar| (1.0 - abar).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::gaussian;

    fn schedule(prediction_type: PredictionType) -> (SchedulerConfig, NoiseSchedule) {
        let config =
            SchedulerConfig { prediction_type, clip_sample: false, ..SchedulerConfig::default() };
        let schedule = NoiseSchedule::new(&config);
        (config, schedule)
    }

    fn distance(a: Tensor<4>, b: Tensor<4>) -> f32 {
        (a - b).abs().max().into_scalar()
    }

    #[test]
    fn the_true_prediction_gives_back_x0_and_the_noise() {
        let device = Device::default();
        for kind in [PredictionType::Epsilon, PredictionType::VPrediction] {
            let (_, schedule) = schedule(kind);
            let x0 = gaussian::<4>(0, 0, [3, 4, 5, 5], &device);
            let noise = gaussian::<4>(0, 1, [3, 4, 5, 5], &device);
            for t in [0, 10, 500] {
                let noisy = add_noise(&schedule, x0.clone(), noise.clone(), &[t; 3]);
                let truth = target(&schedule, x0.clone(), noise.clone(), &[t; 3]);
                let (x0_hat, noise_hat) = predicted(&schedule, truth, t, noisy);
                assert!(distance(x0_hat, x0.clone()) < 1e-4, "{kind:?} {t}");
                assert!(distance(noise_hat, noise.clone()) < 1e-4, "{kind:?} {t}");
            }
        }
    }

    #[test]
    fn the_last_step_with_the_true_prediction_is_x0() {
        let device = Device::default();
        let (config, schedule) = schedule(PredictionType::Epsilon);
        let x0 = gaussian::<4>(1, 0, [1, 4, 5, 5], &device);
        let noise = gaussian::<4>(1, 1, [1, 4, 5, 5], &device);
        let noisy = add_noise(&schedule, x0.clone(), noise.clone(), &[20]);
        let out = step(&schedule, &config, noise.clone(), 20, None, noisy, noise);
        assert!(distance(out, x0) < 1e-4);
    }

    #[test]
    fn each_sample_has_its_own_timestep() {
        let device = Device::default();
        let (_, schedule) = schedule(PredictionType::Epsilon);
        let x0 = gaussian::<4>(2, 0, [2, 1, 2, 2], &device);
        let noise = gaussian::<4>(2, 1, [2, 1, 2, 2], &device);
        let both = add_noise(&schedule, x0.clone(), noise.clone(), &[5, 700]);
        for (i, t) in [5, 700].into_iter().enumerate() {
            let one = |x: &Tensor<4>| x.clone().narrow(0, i, 1);
            let alone = add_noise(&schedule, one(&x0), one(&noise), &[t]);
            assert_eq!(distance(one(&both), alone), 0.0);
        }
    }
}
