//! The deterministic sampler.
//!
//! ```text
//! x_s = sqrt(abar_s) x0 + sqrt(1 - abar_s - sigma^2) eps + sigma z
//! sigma = eta sqrt((1 - abar_s) / (1 - abar_t)) sqrt(1 - abar_t / abar_s)
//! ```
//!
//! "Denoising Diffusion Implicit Models" (arXiv 2010.02502), formulas (12) and (16). Mirrors
//! diffusers' `DDIMScheduler`.

use burn::tensor::Tensor;

use crate::error::ModelError;
use crate::scheduler::beta::NoiseSchedule;
use crate::scheduler::config::{SchedulerConfig, TimestepSpacing};

/// A plan of timesteps through a noise schedule.
#[derive(Debug, Clone)]
pub struct Ddim {
    /// The timesteps to visit, noisiest first.
    pub timesteps: Vec<usize>,
    schedule: NoiseSchedule,
    config: SchedulerConfig,
}

impl Ddim {
    /// Plans `steps` steps.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, ModelError> {
        let schedule = NoiseSchedule::new(config);
        if steps == 0 || steps > schedule.len() {
            return Err(ModelError::InvalidRequest {
                field: "steps",
                value: steps.to_string(),
                expected: format!("it must be between 1 and {}", schedule.len()),
            });
        }
        let timesteps = spaced(config, steps);
        // An offset can point beyond the schedule; diffusers would fail in its first step.
        if timesteps.iter().any(|t| *t >= schedule.len()) {
            return Err(ModelError::InvalidRequest {
                field: "steps",
                value: steps.to_string(),
                expected: format!(
                    "with a steps_offset of {} it must be smaller than {}",
                    config.steps_offset,
                    schedule.len()
                ),
            });
        }
        Ok(Self { timesteps, schedule, config: config.clone() })
    }

    /// From timestep `t` to the next of the plan. `eta` is 0 for DDIM, 1 for the noise of DDPM.
    ///
    /// `prediction`, `sample` and `noise`: `[b, c, h, w]`; without noise, `eta` has no effect.
    pub fn step(
        &self,
        prediction: Tensor<4>,
        t: usize,
        sample: Tensor<4>,
        eta: f64,
        noise: Option<Tensor<4>>,
    ) -> Tensor<4> {
        let abar = self.schedule.alpha_cumprod(t);
        let abar_next = self.next_alpha(t);
        let eta = if noise.is_some() { eta } else { 0.0 };
        let variance = (1.0 - abar_next) / (1.0 - abar) * (1.0 - abar / abar_next);
        let sigma = eta * variance.max(0.0).sqrt();

        let (x0, epsilon) = self.schedule.split(prediction, t, sample);
        let x0 = self.config.clip(x0);
        let direction = (1.0 - abar_next - sigma * sigma).max(0.0).sqrt();
        let next = x0.mul_scalar(abar_next.sqrt()) + epsilon.mul_scalar(direction);
        match noise {
            Some(noise) if sigma > 0.0 => next + noise.mul_scalar(sigma),
            _ => next,
        }
    }

    /// `abar` after the step from `t`: one stride on, also where the plan's spacing is uneven.
    fn next_alpha(&self, t: usize) -> f64 {
        let stride = self.schedule.len() / self.timesteps.len();
        match t.checked_sub(stride) {
            Some(next) => self.schedule.alpha_cumprod(next),
            None if self.config.set_alpha_to_one => 1.0,
            None => self.schedule.alpha_cumprod(0),
        }
    }
}

/// The timesteps of a plan, noisiest first, by numpy's arithmetic.
fn spaced(config: &SchedulerConfig, steps: usize) -> Vec<usize> {
    let total = config.num_train_timesteps;
    match config.timestep_spacing {
        TimestepSpacing::Leading => {
            let stride = total / steps;
            (0..steps).rev().map(|i| i * stride + config.steps_offset).collect()
        }
        TimestepSpacing::Trailing => {
            let stride = total as f64 / steps as f64;
            (0..steps)
                .map(|i| (total as f64 - i as f64 * stride).round_ties_even() as usize)
                .map(|t| t.max(1) - 1)
                .collect()
        }
        TimestepSpacing::Linspace => {
            let stride = (total - 1) as f64 / (steps.max(2) - 1) as f64;
            (0..steps).rev().map(|i| (i as f64 * stride).round_ties_even() as usize).collect()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::noise::gaussian;
    use crate::scheduler::config::BetaSchedule;
    use crate::scheduler::ddpm::Ddpm;

    fn config() -> SchedulerConfig {
        SchedulerConfig {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            steps_offset: 1,
            set_alpha_to_one: false,
            clip_sample: false,
            ..SchedulerConfig::default()
        }
    }

    /// Values of diffusers 0.42: `DDIMScheduler(...).timesteps`.
    #[test]
    fn plans_are_those_of_diffusers() {
        let plan = |timestep_spacing, steps| {
            let config = SchedulerConfig { timestep_spacing, ..config() };
            Ddim::new(&config, steps).unwrap().timesteps
        };
        assert_eq!(plan(TimestepSpacing::Leading, 4), [751, 501, 251, 1]);
        assert_eq!(plan(TimestepSpacing::Trailing, 3), [999, 666, 332]);
        assert_eq!(plan(TimestepSpacing::Trailing, 7), [999, 856, 713, 570, 428, 285, 142]);
        assert_eq!(plan(TimestepSpacing::Linspace, 3), [999, 500, 0]);
        assert_eq!(plan(TimestepSpacing::Linspace, 1), [0]);
    }

    #[test]
    fn steps_with_the_true_noise_follow_the_forward_process() {
        let device = Device::default();
        let ddim = Ddim::new(&config(), 10).unwrap();
        let x0 = gaussian::<4>(0, 0, [1, 4, 4, 4], &device);
        let noise = gaussian::<4>(0, 1, [1, 4, 4, 4], &device);
        let forward = |t: usize| {
            let t = Tensor::from_ints([t as i32], &device);
            Ddpm::new(&config()).add_noise(x0.clone(), noise.clone(), t)
        };
        let mut sample = forward(901);
        for pair in ddim.timesteps.windows(2) {
            sample = ddim.step(noise.clone(), pair[0], sample, 0.0, None);
            let difference: f32 = (sample.clone() - forward(pair[1])).abs().max().into_scalar();
            assert!(difference < 1e-4, "t = {}: {difference}", pair[1]);
        }
    }

    #[test]
    fn a_plan_must_fit_the_schedule() {
        for steps in [0, 1000, 1001] {
            assert!(matches!(
                Ddim::new(&config(), steps),
                Err(ModelError::InvalidRequest { field: "steps", .. })
            ));
        }
    }
}
