//! Heun's method for the probability flow: Euler's step, repeated with the mean of both ends' derivatives.
//!
//! ```text
//! d = (x - x0) / sigma,   x' = x + d (sigma' - sigma)
//! d' = (x' - x0') / sigma',   x'' = x + (d + d') / 2 (sigma' - sigma)
//! ```
//!
//! Algorithm 2 of Karras et al. (arXiv 2206.00364) without churn. Mirrors diffusers' `HeunDiscreteScheduler`.
//! Even calls are Euler's steps and odd calls repeat them. The step to noise level 0 is not repeated.

use burn::tensor::Tensor;

use super::config::{FinalSigmasType, SchedulerConfig};
use super::level_plan::{LevelPlan, unit_variance};
use super::sampler::Sampler;
use super::sampler_kind::SamplerKind;

/// The noise levels of a Heun run, and where its last step began.
#[derive(Debug, Clone)]
pub(crate) struct Heun {
    plan: LevelPlan,
    /// The timestep of each call.
    timesteps: Vec<f64>,
    config: SchedulerConfig,
    /// The sample and the derivative of the last Euler step.
    begin: Option<(Tensor<4>, Tensor<4>)>,
}

impl Heun {
    /// Plans `steps` steps, which are twice as many calls less one.
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Self {
        let (karras, last) = (config.use_karras_sigmas, FinalSigmasType::Zero);
        let plan = LevelPlan::new(config, SamplerKind::Heun, steps, karras, last);
        let timesteps = (0..2 * steps - 1).map(|call| plan.timesteps[call.div_ceil(2)]).collect();
        Self { plan, timesteps, config: config.clone(), begin: None }
    }

    /// The noise level of the sample at a call.
    fn sigma(&self, call: usize) -> f64 {
        self.plan.sigmas[call.div_ceil(2)]
    }
}

impl Sampler for Heun {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn alpha_and_sigma(&self, call: usize) -> (f64, f64) {
        (1.0, self.sigma(call))
    }

    fn step(
        &mut self,
        call: usize,
        prediction: Tensor<4>,
        sample: Tensor<4>,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let sigma = self.sigma(call);
        let x0 = self.config.prediction_type.predicted_x0(prediction, sample.clone(), 1.0, sigma);
        let derivative = (sample.clone() - self.config.clip(x0)).div_scalar(sigma);
        let change = self.plan.sigmas[call / 2 + 1] - self.plan.sigmas[call / 2];
        match self.begin.take().filter(|_| call % 2 == 1) {
            Some((begin, first)) => begin + (first + derivative).mul_scalar(change / 2.0),
            None => {
                self.begin = Some((sample.clone(), derivative.clone()));
                sample + derivative.mul_scalar(change)
            }
        }
    }

    fn init_noise_sigma(&self) -> f64 {
        self.plan.init_noise_sigma
    }

    fn scale_model_input(&self, call: usize, sample: Tensor<4>) -> Tensor<4> {
        unit_variance(sample, self.sigma(call))
    }

    fn calls_per_step(&self) -> usize {
        2
    }
}
