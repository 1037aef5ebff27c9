//! DEIS: the predicted noise is extrapolated by a polynomial in the logarithm of the noise level, and the
//! integral of it is exact.
//!
//! ```text
//! rho = sigma / alpha
//! x_t = alpha_t (x_s / alpha_s + sum_i c_i e_i),   c_i = integral from rho_s to rho_t of L_i(ln rho) drho
//! ```
//!
//! `e_i` are the last predictions of the noise, and `L_i` are the Lagrange polynomials of their levels.
//!
//! "Fast Sampling of Diffusion Models with Exponential Integrator" (arXiv 2204.13902), section 3.3. Mirrors
//! diffusers' `DEISMultistepScheduler` (`logrho`). The noise level after its last step is never 0.

use burn::tensor::Tensor;

use super::dpm_solver::FEW;
use super::history::{History, STILL};
use super::plan::{Plan, shares};
use crate::scheduler::config::{FinalSigmasType, SchedulerConfig};
use crate::scheduler::sampler::Sampler;
use crate::scheduler::sampler_kind::SamplerKind;

/// The noise levels of a DEIS run and its last predictions of the noise.
#[derive(Debug, Clone)]
pub(crate) struct Deis {
    plan: Plan,
    config: SchedulerConfig,
    history: History,
}

impl Deis {
    /// Plans `steps` steps.
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Self {
        let plan = Plan::new(config, SamplerKind::Deis, steps, FinalSigmasType::SigmaMin);
        Self { plan, config: config.clone(), history: History::new(3) }
    }

    /// The order of a step: lower without enough predictions, and at the end of a short run.
    fn order(&self, call: usize) -> usize {
        let steps = self.plan.timesteps.len();
        let allowed = match steps - call {
            left @ 1..=2 if self.config.lower_order_final && steps < FEW => left,
            _ => 3,
        };
        self.config.solver_order.min(self.history.len()).min(allowed)
    }
}

/// The antiderivative at `rho` of the Lagrange polynomial in `ln rho` that is 1 at `own` and 0 at `others`.
fn antiderivative(rho: f64, own: f64, others: &[f64]) -> f64 {
    let (t, b) = (rho.ln(), own.ln());
    match *others {
        [] => rho,
        [c] => rho * (t - c.ln() - 1.0) / (b - c.ln()),
        [c, d, ..] => {
            let (c, d) = (c.ln(), d.ln());
            let numerator = c * (d - t + 1.0) - d * t + d + t * t - 2.0 * t + 2.0;
            rho * numerator / ((b - c) * (b - d))
        }
    }
}

impl Sampler for Deis {
    fn timesteps(&self) -> &[f64] {
        &self.plan.timesteps
    }

    fn alpha_and_sigma(&self, call: usize) -> (f64, f64) {
        shares(self.plan.sigmas[call])
    }

    fn step(
        &mut self,
        call: usize,
        prediction: Tensor<4>,
        sample: Tensor<4>,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let (rho_s, rho_t) = (self.plan.sigmas[call], self.plan.sigmas[call + 1]);
        let ((alpha_s, sigma_s), (alpha_t, _)) = (shares(rho_s), shares(rho_t));
        let kind = self.config.prediction_type;
        let noise = kind.predicted_noise(prediction, sample.clone(), alpha_s, sigma_s);
        self.history.push(rho_s, noise);
        if (rho_s / rho_t).ln().abs() < STILL {
            return sample;
        }
        let order = self.order(call);
        let mut next = sample.div_scalar(alpha_s);
        for i in 0..order {
            let others: Vec<f64> =
                (0..order).filter(|j| *j != i).map(|j| self.history.sigma(j)).collect();
            let at = |rho| antiderivative(rho, self.history.sigma(i), &others);
            next = next + self.history.prediction(i).mul_scalar(at(rho_t) - at(rho_s));
        }
        next.mul_scalar(alpha_t)
    }
}
