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

use super::config::{FinalSigmasType, PredictionType, SchedulerConfig, TimestepSpacing};
use super::noise_schedule::NoiseSchedule;
use super::sampler::Sampler;
use super::sampler_kind::SamplerKind;
use super::spacing::{interpolate, karras, sigmas, spaced, timestep_of};

/// The noise levels of an Euler run.
#[derive(Debug, Clone)]
pub(crate) struct Euler {
    timesteps: Vec<f64>,
    /// The noise level at each step, and after the last one.
    sigmas: Vec<f64>,
    prediction_type: PredictionType,
    init_noise_sigma: f64,
    ancestral: bool,
}

impl Euler {
    /// Plans `steps` steps. With `ancestral`, each step adds fresh noise.
    pub(crate) fn new(config: &SchedulerConfig, steps: usize, ancestral: bool) -> Self {
        let all = sigmas(&NoiseSchedule::new(config));
        let spacing = config.spacing(SamplerKind::Euler);
        let mut timesteps = spaced(spacing, all.len(), steps, config.steps_offset);
        let mut plan: Vec<f64> = timesteps.iter().map(|t| interpolate(&all, *t)).collect();
        // diffusers' ancestral scheduler has neither Karras' sigmas nor `final_sigmas_type`.
        if config.use_karras_sigmas && !ancestral {
            plan = karras(plan[0], plan[steps - 1], steps);
            timesteps = plan.iter().map(|sigma| timestep_of(&all, *sigma)).collect();
        }
        let last = match config.final_sigmas_type {
            FinalSigmasType::SigmaMin if !ancestral => all[0],
            _ => 0.0,
        };
        let max = plan.iter().fold(last, |max, sigma| max.max(*sigma));
        plan.push(last);
        Self {
            timesteps,
            sigmas: plan,
            prediction_type: config.prediction_type,
            init_noise_sigma: match spacing {
                TimestepSpacing::Leading => (max * max + 1.0).sqrt(),
                TimestepSpacing::Trailing | TimestepSpacing::Linspace => max,
            },
            ancestral,
        }
    }
}

impl Sampler for Euler {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn alpha_and_sigma(&self, call: usize) -> (f64, f64) {
        (1.0, self.sigmas[call])
    }

    fn step(
        &mut self,
        call: usize,
        prediction: Tensor<4>,
        sample: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let (sigma, next) = (self.sigmas[call], self.sigmas[call + 1]);
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
        self.init_noise_sigma
    }

    fn scale_model_input(&self, call: usize, sample: Tensor<4>) -> Tensor<4> {
        let sigma = self.sigmas[call];
        sample.div_scalar((sigma * sigma + 1.0).sqrt())
    }
}
