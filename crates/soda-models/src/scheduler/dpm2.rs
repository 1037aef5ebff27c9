//! DPM-Solver-2: the midpoint rule in the logarithm of the noise level, with or without fresh noise.
//!
//! ```text
//! m = sqrt(sigma sigma_down),   x_m = x + d (m - sigma),   x' = x + d_m (sigma_down - sigma) + sigma_up z
//! ```
//!
//! `d = (x - x0) / sigma`, and `sigma_down` and `sigma_up` are Euler's (`euler.rs`).
//!
//! "DPM-Solver" (arXiv 2206.00927), algorithm 1, as in k-diffusion. Mirrors diffusers'
//! `KDPM2DiscreteScheduler` and `KDPM2AncestralDiscreteScheduler`. Even calls step to the midpoint, and odd
//! calls step from the beginning with the midpoint's derivative. The step to noise level 0 is Euler's.

use burn::tensor::Tensor;

use super::config::{FinalSigmasType, PredictionType, SchedulerConfig};
use super::level_plan::{LevelPlan, unit_variance};
use super::sampler::Sampler;
use super::sampler_kind::SamplerKind;
use super::spacing::{rounded, timestep_of};
use crate::error::ModelError;

/// One step's noise levels.
#[derive(Debug, Clone, Copy)]
struct Levels {
    sigma: f64,
    middle: f64,
    down: f64,
    up: f64,
}

/// The noise levels of a DPM2 run, and where its last step began.
#[derive(Debug, Clone)]
pub(crate) struct Dpm2 {
    /// The timestep of each call.
    timesteps: Vec<f64>,
    levels: Vec<Levels>,
    prediction_type: PredictionType,
    init_noise_sigma: f64,
    begin: Option<Tensor<4>>,
}

impl Dpm2 {
    /// Plans `steps` steps, which are twice as many calls less one. With `ancestral`, each adds fresh noise.
    pub(crate) fn new(
        config: &SchedulerConfig,
        steps: usize,
        ancestral: bool,
    ) -> Result<Self, ModelError> {
        if config.prediction_type == PredictionType::Sample {
            return Err(ModelError::InvalidRequest {
                field: "scheduler",
                value: "DPM2".to_string(),
                expected: "it is not defined for a model that predicts images: use DDIM or Euler"
                    .to_string(),
            });
        }
        let kind = if ancestral { SamplerKind::Dpm2Ancestral } else { SamplerKind::Dpm2 };
        let (karras, last) = (config.use_karras_sigmas, FinalSigmasType::Zero);
        let plan = LevelPlan::new(config, kind, steps, karras, last);
        let visited = if karras { rounded(plan.timesteps) } else { plan.timesteps };
        let mut levels = Vec::with_capacity(steps);
        let mut timesteps = Vec::with_capacity(2 * steps);
        for (step, timestep) in visited.into_iter().enumerate() {
            let (sigma, next) = (plan.sigmas[step], plan.sigmas[step + 1]);
            let down = if ancestral { next * next / sigma } else { next };
            let up = (next * next - down * down).max(0.0).sqrt();
            let middle = (sigma * down).sqrt();
            levels.push(Levels { sigma, middle, down, up });
            timesteps.push(timestep);
            timesteps.push(timestep_of(&plan.trained, middle));
        }
        timesteps.pop();
        let prediction_type = config.prediction_type;
        let init_noise_sigma = plan.init_noise_sigma;
        Ok(Self { timesteps, levels, prediction_type, init_noise_sigma, begin: None })
    }

    /// The noise level of the sample at a call.
    fn sigma(&self, call: usize) -> f64 {
        let levels = self.levels[call / 2];
        if call.is_multiple_of(2) { levels.sigma } else { levels.middle }
    }
}

impl Sampler for Dpm2 {
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
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let Levels { sigma: from, middle, down, up } = self.levels[call / 2];
        let sigma = self.sigma(call);
        let x0 = self.prediction_type.predicted_x0(prediction, sample.clone(), 1.0, sigma);
        let derivative = (sample.clone() - x0).div_scalar(sigma);
        match self.begin.take().filter(|_| call % 2 == 1) {
            None => {
                self.begin = Some(sample.clone());
                sample + derivative.mul_scalar(middle - from)
            }
            Some(begin) => {
                let next = begin + derivative.mul_scalar(down - from);
                if up > 0.0 { next + noise().mul_scalar(up) } else { next }
            }
        }
    }

    fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    fn scale_model_input(&self, call: usize, sample: Tensor<4>) -> Tensor<4> {
        unit_variance(sample, self.sigma(call))
    }

    fn calls_per_step(&self) -> usize {
        2
    }
}
