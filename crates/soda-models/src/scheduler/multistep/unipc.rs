//! UniPC: a multistep predictor, and a corrector that uses the prediction at the predictor's result.
//!
//! ```text
//! h = lambda_t - lambda_s,   k = -h,   r_i = (lambda_i - lambda_s) / h
//! x_t = (sigma_t / sigma_s) x_s - alpha_t (e^k - 1) m_s - alpha_t B(k) sum_i rho_i (m_i - m_s) / r_i
//! ```
//!
//! `m` are the last predictions of the image, `B(k)` is `k` (`bh1`) or `e^k - 1` (`bh2`), and `rho` solves a
//! small system of equations. The corrector's sum has one term more, of the prediction at `t`. If `m` are
//! predictions of the noise (`predict_x0: false`), `alpha` and `sigma` change places and `k = h`.
//!
//! "UniPC: A Unified Predictor-Corrector Framework" (arXiv 2302.04867), algorithms 5 to 8. Mirrors diffusers'
//! `UniPCMultistepScheduler`. At `sigma_t = 0` the step gives the predicted image, its limit.

use burn::tensor::Tensor;

use super::history::{History, STILL};
use super::plan::{Plan, shares};
use crate::scheduler::config::{SchedulerConfig, SolverType};
use crate::scheduler::sampler::Sampler;
use crate::scheduler::sampler_kind::SamplerKind;

/// The noise levels of a UniPC run, its last predictions, and the sample that the corrector starts from.
#[derive(Debug, Clone)]
pub(crate) struct UniPc {
    plan: Plan,
    config: SchedulerConfig,
    history: History,
    /// The last sample, and the order of the step from it.
    last: Option<(Tensor<4>, usize)>,
}

impl UniPc {
    /// Plans `steps` steps.
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Self {
        let plan = Plan::new(config, SamplerKind::UniPc, steps, config.final_sigmas_type);
        Self { plan, config: config.clone(), history: History::new(3), last: None }
    }

    /// The step of `order` from `sample`, at the newest prediction, to the noise level `to`.
    ///
    /// With `corrected`, the prediction at `to`, it is the corrector's. `None` if `to` is the same level.
    fn update(
        &self,
        sample: Tensor<4>,
        to: f64,
        order: usize,
        corrected: Option<Tensor<4>>,
    ) -> Option<Tensor<4>> {
        let lambda = self.history.lambda(0);
        let h = -to.ln() - lambda;
        if h.abs() < STILL {
            return None;
        }
        let (alpha, sigma) = shares(to);
        let (alpha_s, sigma_s) = shares(self.history.sigma(0));
        let (k, scale, share) = match self.config.predict_x0 {
            true => (-h, sigma / sigma_s, alpha),
            false => (h, alpha / alpha_s, sigma),
        };
        let b = match self.config.solver_type {
            SolverType::Bh1 => k,
            _ => k.exp_m1(),
        };
        let mut r: Vec<f64> = (1..order).map(|i| (self.history.lambda(i) - lambda) / h).collect();
        if corrected.is_some() {
            r.push(1.0);
        }
        let newest = self.history.prediction(0);
        let mut next = sample.mul_scalar(scale) - newest.clone().mul_scalar(share * k.exp_m1());
        for (i, rho) in weights(&r, k, b).into_iter().enumerate() {
            let other = match &corrected {
                Some(corrected) if i + 1 == order => corrected.clone(),
                _ => self.history.prediction(i + 1),
            };
            let difference = (other - newest.clone()).div_scalar(r[i]);
            next = next - difference.mul_scalar(share * b * rho);
        }
        Some(next)
    }
}

/// The weights `rho` of the differences at `r`: `sum_j rho_j r_j^i = b_i`.
fn weights(r: &[f64], k: f64, b: f64) -> Vec<f64> {
    // A single weight is one half in diffusers, not the solution. So is the predictor's of order 2.
    if r.len() == 1 {
        return vec![0.5];
    }
    let (mut phi, mut factorial) = (k.exp_m1() / k - 1.0, 1.0);
    let mut rows = Vec::with_capacity(r.len());
    for i in 0..r.len() {
        let mut row: Vec<f64> = r.iter().map(|r| r.powi(i as i32)).collect();
        row.push(phi * factorial / b);
        rows.push(row);
        factorial *= (i + 2) as f64;
        phi = phi / k - 1.0 / factorial;
    }
    solve(rows)
}

/// Solves a square system whose rows end with the right side, by elimination with pivots.
fn solve(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let n = rows.len();
    for column in 0..n {
        let largest =
            (column..n).max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()));
        rows.swap(column, largest.unwrap_or(column));
        let pivot = rows[column].clone();
        for (i, row) in rows.iter_mut().enumerate() {
            if i != column {
                let factor = row[column] / pivot[column];
                row.iter_mut().zip(&pivot).for_each(|(x, p)| *x -= factor * p);
            }
        }
    }
    (0..n).map(|i| rows[i][n] / rows[i][i]).collect()
}

impl Sampler for UniPc {
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
        mut sample: Tensor<4>,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let (level, to) = (self.plan.sigmas[call], self.plan.sigmas[call + 1]);
        let (alpha, sigma) = shares(level);
        let kind = self.config.prediction_type;
        let predicted = if self.config.predict_x0 {
            kind.predicted_x0(prediction, sample.clone(), alpha, sigma)
        } else {
            kind.predicted_noise(prediction, sample.clone(), alpha, sigma)
        };
        let corrects = call > 0 && !self.config.disable_corrector.contains(&(call - 1));
        if let Some((last, order)) = self.last.take().filter(|_| corrects) {
            let corrected = self.update(last, level, order, Some(predicted.clone()));
            sample = corrected.unwrap_or(sample);
        }
        self.history.push(level, predicted.clone());

        let left = self.plan.timesteps.len() - call;
        let allowed = if self.config.lower_order_final { left } else { usize::MAX };
        let order = self.config.solver_order.min(allowed).min(self.history.len());
        self.last = Some((sample.clone(), order));
        if to == 0.0 {
            // `lambda` is infinite at sigma 0. The limit of the step is the predicted image.
            return match self.config.predict_x0 {
                true => predicted,
                false => (sample - predicted.mul_scalar(sigma)).div_scalar(alpha),
            };
        }
        self.update(sample.clone(), to, order, None).unwrap_or(sample)
    }
}
