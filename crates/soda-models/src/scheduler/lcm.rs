//! The sampler of latent consistency models: each step predicts the image and noises it again.
//!
//! ```text
//! f = c_skip x + c_out x0,   x_s = sqrt(abar_s) f + sqrt(1 - abar_s) z
//! c_skip = d^2 / ((k t)^2 + d^2),   c_out = k t / sqrt((k t)^2 + d^2),   d = 1/2
//! ```
//!
//! "Latent Consistency Models" (arXiv 2310.04378), algorithm 3. Mirrors diffusers' `LCMScheduler`. Its
//! timesteps are some of the `original_inference_steps` that the model was distilled at.

use burn::tensor::Tensor;

use super::config::SchedulerConfig;
use super::noise_schedule::NoiseSchedule;
use super::sampler::Sampler;
use crate::error::ModelError;

/// The standard deviation of images that the boundary condition assumes.
const SIGMA_DATA: f64 = 0.5;

/// The timesteps of an LCM run. Every step but the last adds fresh noise.
#[derive(Debug, Clone)]
pub(crate) struct Lcm {
    timesteps: Vec<f64>,
    schedule: NoiseSchedule,
    config: SchedulerConfig,
}

impl Lcm {
    /// Plans `steps` steps.
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, ModelError> {
        let schedule = NoiseSchedule::new(config);
        let original = config.original_inference_steps.min(schedule.len());
        if steps > original {
            return Err(ModelError::InvalidRequest {
                field: "steps",
                value: steps.to_string(),
                expected: format!("LCM takes at most the {original} steps of its distillation"),
            });
        }
        let stride = schedule.len() / original;
        let apart = original as f64 / steps as f64;
        let timesteps = (0..steps)
            .map(|i| original - (i as f64 * apart).floor() as usize)
            .map(|i| (i * stride - 1) as f64)
            .collect();
        Ok(Self { timesteps, schedule, config: config.clone() })
    }
}

impl Sampler for Lcm {
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
        let (alpha, sigma) = self.alpha_and_sigma(call);
        let x0 = self.config.prediction_type.predicted_x0(prediction, sample.clone(), alpha, sigma);
        let x0 = self.config.clip(x0);
        let scaled = self.timesteps[call] * self.config.timestep_scaling;
        let square = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let skip = SIGMA_DATA * SIGMA_DATA / square;
        let denoised = x0.mul_scalar(scaled / square.sqrt()) + sample.mul_scalar(skip);
        if call + 1 == self.timesteps.len() {
            return denoised;
        }
        let (alpha, sigma) = self.alpha_and_sigma(call + 1);
        denoised.mul_scalar(alpha) + noise().mul_scalar(sigma)
    }
}
