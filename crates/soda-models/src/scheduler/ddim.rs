//! DDIM, a deterministic sampler.
//!
//! ```text
//! x_s = sqrt(abar_s) x0 + sqrt(1 - abar_s - sigma^2) eps + sigma z
//! sigma = eta sqrt((1 - abar_s) / (1 - abar_t)) sqrt(1 - abar_t / abar_s)
//! ```
//!
//! "Denoising Diffusion Implicit Models" (arXiv 2010.02502), formulas (12) and (16). Mirrors diffusers'
//! `DDIMScheduler`.

use burn::tensor::Tensor;

use super::config::SchedulerConfig;
use super::noise_schedule::NoiseSchedule;
use super::sampler::Sampler;
use super::sampler_kind::SamplerKind;
use super::spacing::{rounded, spaced};

/// The timesteps of a DDIM run and its noise schedule.
#[derive(Debug, Clone)]
pub(crate) struct Ddim {
    timesteps: Vec<f64>,
    schedule: NoiseSchedule,
    config: SchedulerConfig,
    /// The share of fresh noise: 0 for DDIM, 1 for as much as DDPM adds.
    eta: f64,
}

impl Ddim {
    /// Plans `steps` steps without fresh noise.
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Self {
        let schedule = NoiseSchedule::new(config);
        let spacing = config.spacing(SamplerKind::Ddim);
        let timesteps = rounded(spaced(spacing, schedule.len(), steps, config.steps_offset));
        Self { timesteps, schedule, config: config.clone(), eta: 0.0 }
    }

    /// `abar` after the step from `t`: one stride later, also if the spacing is uneven.
    fn next_alpha(&self, t: usize) -> f64 {
        let stride = self.schedule.len() / self.timesteps.len();
        match t.checked_sub(stride) {
            Some(next) => self.schedule.alpha_cumprod(next),
            None if self.config.set_alpha_to_one.unwrap_or(true) => 1.0,
            None => self.schedule.alpha_cumprod(0),
        }
    }
}

impl Sampler for Ddim {
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
        let t = self.timesteps[call] as usize;
        let abar = self.schedule.alpha_cumprod(t);
        let abar_next = self.next_alpha(t);
        let variance = (1.0 - abar_next) / (1.0 - abar) * (1.0 - abar / abar_next);
        let sigma = self.eta * variance.max(0.0).sqrt();

        let (x0, epsilon) = self.schedule.predicted_x0_and_noise(prediction, t, sample);
        let x0 = self.config.clip(x0);
        let direction = (1.0 - abar_next - sigma * sigma).max(0.0).sqrt();
        let next = x0.mul_scalar(abar_next.sqrt()) + epsilon.mul_scalar(direction);
        if sigma > 0.0 { next + noise().mul_scalar(sigma) } else { next }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::error::ModelError;
    use crate::noise::randn;
    use crate::scheduler::config::{BetaSchedule, TimestepSpacing};
    use crate::scheduler::forward_process::ForwardProcess;

    fn config() -> SchedulerConfig {
        SchedulerConfig {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            steps_offset: 1,
            set_alpha_to_one: Some(false),
            clip_sample: Some(false),
            ..SchedulerConfig::default()
        }
    }

    /// The values are `DDIMScheduler(...).timesteps` of diffusers 0.42.
    #[test]
    fn timesteps_match_diffusers() {
        let plan = |spacing, steps| {
            let config = SchedulerConfig { timestep_spacing: Some(spacing), ..config() };
            config.sampler(None, steps).unwrap().timesteps().to_vec()
        };
        assert_eq!(plan(TimestepSpacing::Leading, 4), [751.0, 501.0, 251.0, 1.0]);
        assert_eq!(plan(TimestepSpacing::Trailing, 3), [999.0, 666.0, 332.0]);
        let seven = [999.0, 856.0, 713.0, 570.0, 428.0, 285.0, 142.0];
        assert_eq!(plan(TimestepSpacing::Trailing, 7), seven);
        assert_eq!(plan(TimestepSpacing::Linspace, 3), [999.0, 500.0, 0.0]);
        assert_eq!(plan(TimestepSpacing::Linspace, 1), [0.0]);
    }

    #[test]
    fn steps_with_the_true_noise_follow_the_forward_process() {
        let device = Device::default();
        let mut ddim = Ddim::new(&config(), 10);
        let x0 = randn::<4>(0, 0, [1, 4, 4, 4], &device);
        let noise = randn::<4>(0, 1, [1, 4, 4, 4], &device);
        let forward = |t: f64| {
            let t = Tensor::from_ints([t as i32], &device);
            ForwardProcess::new(&config()).add_noise(x0.clone(), noise.clone(), t)
        };
        let mut sample = forward(901.0);
        for call in 0..9 {
            sample = ddim.step(call, noise.clone(), sample, &mut || unreachable!());
            let truth = forward(ddim.timesteps[call + 1]);
            let difference = (sample.clone() - truth).into_data();
            let difference = soda_testing::max_abs(difference.iter::<f32>());
            assert!(difference < 1e-4, "call {call}: {difference}");
        }
    }

    #[test]
    fn steps_must_fit_the_schedule() {
        for steps in [0, 1000, 1001] {
            assert!(matches!(
                config().sampler(None, steps),
                Err(ModelError::InvalidRequest { field: "steps", .. })
            ));
        }
    }
}
