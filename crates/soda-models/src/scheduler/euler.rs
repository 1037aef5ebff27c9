//! Euler's method for the probability flow, with or without fresh noise.
//!
//! ```text
//! d = (x - x0) / sigma,   x' = x + d (sigma_down - sigma) + sigma_up z
//! sigma_up^2 = sigma'^2 (sigma^2 - sigma'^2) / sigma^2,   sigma_down^2 = sigma'^2 - sigma_up^2
//! ```
//!
//! Algorithm 2 of Karras et al. (arXiv 2206.00364) without churn; `sigma_up = 0` without fresh noise. Samples
//! are image plus noise and not scaled to unit variance. Mirrors diffusers' `EulerDiscreteScheduler` and
//! `EulerAncestralDiscreteScheduler`.

use burn::tensor::Tensor;

use super::config::{FinalSigmasType, PredictionType, SchedulerConfig};
use super::level_plan::{LevelPlan, unit_variance};
use super::sampler::Sampler;
use super::sampler_kind::SamplerKind;

/// The noise levels of an Euler run.
#[derive(Debug, Clone)]
pub(crate) struct Euler {
    plan: LevelPlan,
    prediction_type: PredictionType,
    ancestral: bool,
}

impl Euler {
    /// Plans `steps` steps. With `ancestral`, each step adds fresh noise.
    pub(crate) fn new(config: &SchedulerConfig, steps: usize, ancestral: bool) -> Self {
        // diffusers' ancestral scheduler has neither Karras' sigmas nor `final_sigmas_type`.
        let (kind, karras, last) = match ancestral {
            true => (SamplerKind::EulerAncestral, false, FinalSigmasType::Zero),
            false => (SamplerKind::Euler, config.use_karras_sigmas, config.final_sigmas_type),
        };
        let plan = LevelPlan::new(config, kind, steps, karras, last);
        Self { plan, prediction_type: config.prediction_type, ancestral }
    }
}

impl Sampler for Euler {
    fn timesteps(&self) -> &[f64] {
        &self.plan.timesteps
    }

    fn alpha_and_sigma(&self, call: usize) -> (f64, f64) {
        (1.0, self.plan.sigmas[call])
    }

    fn step(
        &mut self,
        call: usize,
        prediction: Tensor<4>,
        sample: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let (sigma, next) = (self.plan.sigmas[call], self.plan.sigmas[call + 1]);
        let up = if self.ancestral {
            (next * next * (sigma * sigma - next * next) / (sigma * sigma)).max(0.0).sqrt()
        } else {
            0.0
        };
        let down = (next * next - up * up).max(0.0).sqrt();
        let x0 = self.prediction_type.predicted_x0(prediction, sample.clone(), 1.0, sigma);
        let derivative = (sample.clone() - x0).div_scalar(sigma);
        let next = sample + derivative.mul_scalar(down - sigma);
        if up > 0.0 { next + noise().mul_scalar(up) } else { next }
    }

    fn init_noise_sigma(&self) -> f64 {
        self.plan.init_noise_sigma
    }

    fn scale_model_input(&self, call: usize, sample: Tensor<4>) -> Tensor<4> {
        unit_variance(sample, self.plan.sigmas[call])
    }
}
