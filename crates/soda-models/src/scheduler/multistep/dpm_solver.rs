//! DPM-Solver++: multistep solvers of order 1 to 3 in the half logarithm of the SNR.
//!
//! ```text
//! lambda = ln(alpha / sigma),   h = lambda_t - lambda_s,   k = h (ODE) or 2 h (SDE)
//! x_t = (sigma_t / sigma_s) e^(h - k) x_s + alpha_t (1 - e^-k) D0 + alpha_t c1 D1 + alpha_t c2 D2
//!       + sigma_t sqrt(1 - e^-2h) z   (SDE)
//! ```
//!
//! `D0` is the last prediction of the image, and `D1` and `D2` are its divided differences. At `sigma_t = 0`
//! the step gives `x_t = D0`, its limit.
//!
//! Lu et al. (arXiv 2211.01095), algorithm 2 and appendix D. Mirrors diffusers' `DPMSolverMultistepScheduler`
//! with the algorithms `dpmsolver++` and `sde-dpmsolver++`.

use burn::tensor::Tensor;

use super::history::{History, STILL};
use super::plan::{Plan, shares};
use crate::scheduler::config::{AlgorithmType, FinalSigmasType, SchedulerConfig, SolverType};
use crate::scheduler::sampler::Sampler;
use crate::scheduler::sampler_kind::SamplerKind;

/// Runs with fewer steps end with lower orders if the config says `lower_order_final`.
pub(super) const FEW: usize = 15;

/// The noise levels of a DPM-Solver++ run and its last predictions of the image.
#[derive(Debug, Clone)]
pub(crate) struct DpmSolver {
    plan: Plan,
    config: SchedulerConfig,
    history: History,
}

impl DpmSolver {
    /// Plans `steps` steps.
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Self {
        let plan = Plan::new(config, SamplerKind::DpmSolver, steps, config.final_sigmas_type);
        Self { plan, config: config.clone(), history: History::new(3) }
    }

    /// The order of a step: lower without enough predictions, and at the end of the run.
    fn order(&self, call: usize) -> usize {
        let steps = self.plan.timesteps.len();
        let lower = self.config.lower_order_final && steps < FEW;
        let zero = self.config.final_sigmas_type == FinalSigmasType::Zero;
        let allowed = if call + 1 == steps && (self.config.euler_at_final || lower || zero) {
            1
        } else if call + 2 == steps && lower {
            2
        } else {
            3
        };
        self.config.solver_order.min(self.history.len()).min(allowed)
    }
}

impl Sampler for DpmSolver {
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
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let (alpha_s, sigma_s) = shares(self.plan.sigmas[call]);
        let x0 =
            self.config.prediction_type.predicted_x0(prediction, sample.clone(), alpha_s, sigma_s);
        self.history.push(self.plan.sigmas[call], x0);
        let order = self.order(call);

        if self.plan.sigmas[call + 1] == 0.0 {
            // `lambda` is infinite at sigma 0. The limit of the step is `alpha D0` with `alpha = 1`.
            return self.history.prediction(0);
        }
        let (alpha, sigma) = shares(self.plan.sigmas[call + 1]);
        let lambda = self.plan.lambda(call);
        let h = self.plan.lambda(call + 1) - lambda;
        if h.abs() < STILL {
            return sample;
        }
        let sde = self.config.algorithm_type == AlgorithmType::SdeDpmSolverPlusPlus;
        let k = if sde { 2.0 * h } else { h };
        let decay = (-k).exp();

        let m = |i: usize| self.history.prediction(i);
        let mut next = sample.mul_scalar(sigma / sigma_s * (h - k).exp())
            + m(0).mul_scalar(alpha * (1.0 - decay));
        if order >= 2 {
            let r0 = (lambda - self.history.lambda(1)) / h;
            let d1_0 = (m(0) - m(1)).div_scalar(r0);
            // The integral of the linear part. The midpoint rule is an approximation of it.
            let linear = 1.0 - (1.0 - decay) / k;
            if order == 2 {
                let c1 = match self.config.solver_type {
                    SolverType::Heun => linear,
                    // diffusers takes the rules of other classes for the midpoint rule.
                    _ => 0.5 * (1.0 - decay),
                };
                next = next + d1_0.mul_scalar(alpha * c1);
            } else {
                let r1 = (self.history.lambda(1) - self.history.lambda(2)) / h;
                let d1_1 = (m(1) - m(2)).div_scalar(r1);
                let difference = d1_0.clone() - d1_1;
                let d1 = d1_0 + difference.clone().mul_scalar(r0 / (r0 + r1));
                let d2 = difference.div_scalar(r0 + r1);
                // diffusers adds one half for the ODE and subtracts it for the SDE.
                let half = if sde { -0.5 } else { 0.5 };
                let quadratic = half - (decay - 1.0 + k) / (k * k);
                next = next + d1.mul_scalar(alpha * linear) + d2.mul_scalar(alpha * quadratic);
            }
        }
        let fresh = sigma * (1.0 - (-2.0 * h).exp()).max(0.0).sqrt();
        if sde && fresh > 0.0 { next + noise().mul_scalar(fresh) } else { next }
    }
}
