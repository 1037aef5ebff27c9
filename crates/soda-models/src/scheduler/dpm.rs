//! DPM-Solver++: multistep solvers of order 1 to 3 in the half logarithm of the SNR.
//!
//! ```text
//! lambda = ln(alpha / sigma),   h = lambda_t - lambda_s,   k = h (ODE) or 2 h (SDE)
//! x_t = (sigma_t / sigma_s) e^(h - k) x_s + alpha_t (1 - e^-k) D0 + alpha_t c1 D1 + alpha_t c2 D2
//!       + sigma_t sqrt(1 - e^-2h) z   (SDE)
//! ```
//!
//! `D0` is the last prediction of the picture, `D1` and `D2` its divided differences. Lu et al.
//! (arXiv 2211.01095), algorithm 2 and appendix D. Mirrors diffusers'
//! `DPMSolverMultistepScheduler` with the algorithms `dpmsolver++` and `sde-dpmsolver++`.

use burn::tensor::Tensor;

use crate::scheduler::beta::NoiseSchedule;
use crate::scheduler::config::{
    Algorithm, BetaSchedule, FinalSigmas, SchedulerConfig, SolverType, TimestepSpacing,
};
use crate::scheduler::sampler::{Sampler, SamplerKind};
use crate::scheduler::spacing::{
    interpolate, karras, leading, rounded, sigmas, spaced, timestep_of,
};

/// Plans shorter than this end with lower orders, where the config asks for it.
const FEW: usize = 15;

/// A plan, and the last predictions.
#[derive(Debug, Clone)]
pub struct DpmSolver {
    timesteps: Vec<f64>,
    /// The noise relative to the picture at each call, and after the last.
    pub sigmas: Vec<f64>,
    config: SchedulerConfig,
    /// Predicted pictures, the last one first.
    pictures: Vec<Tensor<4>>,
    /// Calls so far, which bound the order.
    calls: usize,
}

impl DpmSolver {
    /// Plans `steps` steps.
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Self {
        let all = sigmas(&NoiseSchedule::new(config));
        let total = all.len();
        let mut timesteps = match config.spacing(SamplerKind::DpmSolver) {
            TimestepSpacing::Trailing => {
                spaced(TimestepSpacing::Trailing, total, steps, config.steps_offset)
            }
            // One more, so that the last one visited is not 0.
            TimestepSpacing::Linspace => {
                let mut all = spaced(TimestepSpacing::Linspace, total, steps + 1, 0);
                all.pop();
                rounded(all)
            }
            TimestepSpacing::Leading => {
                let mut all = leading(total / (steps + 1), steps + 1, config.steps_offset);
                all.pop();
                all
            }
        };
        let mut plan: Vec<f64> = timesteps.iter().map(|t| interpolate(&all, *t)).collect();
        if config.use_karras_sigmas {
            plan = karras(all[total - 1], all[0], steps);
            timesteps = plan.iter().map(|sigma| timestep_of(&all, *sigma)).collect();
            if config.beta_schedule != BetaSchedule::SquaredcosCapV2 {
                timesteps = rounded(timesteps);
            }
            timesteps.iter_mut().for_each(|t| *t = t.trunc());
        }
        plan.push(match config.final_sigmas_type {
            FinalSigmas::SigmaMin => all[0],
            FinalSigmas::Zero => 0.0,
        });
        Self { timesteps, sigmas: plan, config: config.clone(), pictures: Vec::new(), calls: 0 }
    }

    /// The order of the solver at a call: lower while there is no history, and at the end.
    fn order(&self, call: usize) -> usize {
        let steps = self.timesteps.len();
        let lower = self.config.lower_order_final && steps < FEW;
        let zero = self.config.final_sigmas_type == FinalSigmas::Zero;
        let allowed = if call + 1 == steps && (self.config.euler_at_final || lower || zero) {
            1
        } else if call + 2 == steps && lower {
            2
        } else {
            3
        };
        self.config.solver_order.min(self.calls + 1).min(allowed)
    }

    fn lambda(&self, call: usize) -> f64 {
        -self.sigmas[call].ln()
    }
}

/// The share of the picture and of the noise in a sample of unit variance.
fn shares(sigma: f64) -> (f64, f64) {
    let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
    (alpha, sigma * alpha)
}

impl Sampler for DpmSolver {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn levels(&self, call: usize) -> (f64, f64) {
        shares(self.sigmas[call])
    }

    fn step(
        &mut self,
        call: usize,
        prediction: Tensor<4>,
        sample: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let (alpha_s, sigma_s) = shares(self.sigmas[call]);
        let x0 = self.config.prediction_type.x0(prediction, sample.clone(), alpha_s, sigma_s);
        self.pictures.insert(0, x0);
        self.pictures.truncate(3);
        let order = self.order(call);
        self.calls += 1;

        if self.sigmas[call + 1] == 0.0 {
            // lambda is infinite at sigma 0, and the limit of the step is alpha D0 with alpha = 1.
            return self.pictures[0].clone();
        }
        let (alpha, sigma) = shares(self.sigmas[call + 1]);
        let h = self.lambda(call + 1) - self.lambda(call);
        let sde = self.config.algorithm_type == Algorithm::SdeDpmSolverPlusPlus;
        let k = if sde { 2.0 * h } else { h };
        let decay = (-k).exp();

        let m = |i: usize| self.pictures[i].clone();
        let mut next = sample.mul_scalar(sigma / sigma_s * (h - k).exp())
            + m(0).mul_scalar(alpha * (1.0 - decay));
        if order >= 2 {
            let r0 = (self.lambda(call) - self.lambda(call - 1)) / h;
            let d1_0 = (m(0) - m(1)).div_scalar(r0);
            // The integral of the linear part; midpoint's rule is close to it.
            let linear = 1.0 - (1.0 - decay) / k;
            if order == 2 {
                let c1 = match self.config.solver_type {
                    SolverType::Midpoint => 0.5 * (1.0 - decay),
                    SolverType::Heun => linear,
                };
                next = next + d1_0.mul_scalar(alpha * c1);
            } else {
                let r1 = (self.lambda(call - 1) - self.lambda(call - 2)) / h;
                let d1_1 = (m(1) - m(2)).div_scalar(r1);
                let difference = d1_0.clone() - d1_1;
                let d1 = d1_0 + difference.clone().mul_scalar(r0 / (r0 + r1));
                let d2 = difference.div_scalar(r0 + r1);
                // Of the SDE, diffusers subtracts the half that it adds for the ODE.
                let half = if sde { -0.5 } else { 0.5 };
                let quadratic = half - (decay - 1.0 + k) / (k * k);
                next = next + d1.mul_scalar(alpha * linear) + d2.mul_scalar(alpha * quadratic);
            }
        }
        let fresh = sigma * (1.0 - (-2.0 * h).exp()).max(0.0).sqrt();
        if sde && fresh > 0.0 { next + noise().mul_scalar(fresh) } else { next }
    }
}
