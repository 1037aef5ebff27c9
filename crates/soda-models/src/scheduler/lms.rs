//! LMS: a linear multistep method (Adams-Bashforth) in the noise level, of order up to 4.
//!
//! ```text
//! d = (x - x0) / sigma,   x' = x + sum_i c_i d_i,   c_i = integral from sigma to sigma' of L_i
//! ```
//!
//! `d_i` are the last derivatives and `L_i` the Lagrange polynomials of their noise levels. From k-diffusion.
//! Mirrors diffusers' `LMSDiscreteScheduler`.

use burn::tensor::Tensor;

use super::config::{FinalSigmasType, PredictionType, SchedulerConfig};
use super::level_plan::{LevelPlan, unit_variance};
use super::multistep::History;
use super::sampler::Sampler;
use super::sampler_kind::SamplerKind;

/// The largest number of derivatives in a step.
const ORDER: usize = 4;

/// The noise levels of an LMS run and its last derivatives.
#[derive(Debug, Clone)]
pub(crate) struct Lms {
    plan: LevelPlan,
    prediction_type: PredictionType,
    history: History,
}

impl Lms {
    /// Plans `steps` steps.
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Self {
        let (karras, last) = (config.use_karras_sigmas, FinalSigmasType::Zero);
        let plan = LevelPlan::new(config, SamplerKind::Lms, steps, karras, last);
        Self { plan, prediction_type: config.prediction_type, history: History::new(ORDER) }
    }

    /// The integral of Lagrange polynomial `i` from `from` to `to`.
    ///
    /// Gauss' rule with two nodes is exact up to degree 3.
    fn coefficient(&self, i: usize, from: f64, to: f64) -> f64 {
        let own = self.history.sigma(i);
        let others: Vec<f64> =
            (0..self.history.len()).filter(|j| *j != i).map(|j| self.history.sigma(j)).collect();
        let (middle, half) = ((from + to) / 2.0, (to - from) / 2.0);
        let node = half / 3f64.sqrt();
        let value = |at: f64| others.iter().map(|s| (at - s) / (own - s)).product::<f64>();
        half * (value(middle - node) + value(middle + node))
    }
}

impl Sampler for Lms {
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
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let (sigma, next) = (self.plan.sigmas[call], self.plan.sigmas[call + 1]);
        let x0 = self.prediction_type.predicted_x0(prediction, sample.clone(), 1.0, sigma);
        self.history.push(sigma, (sample.clone() - x0).div_scalar(sigma));
        (0..self.history.len()).fold(sample, |sample, i| {
            sample + self.history.prediction(i).mul_scalar(self.coefficient(i, sigma, next))
        })
    }

    fn init_noise_sigma(&self) -> f64 {
        self.plan.init_noise_sigma
    }

    fn scale_model_input(&self, call: usize, sample: Tensor<4>) -> Tensor<4> {
        unit_variance(sample, self.plan.sigmas[call])
    }
}
