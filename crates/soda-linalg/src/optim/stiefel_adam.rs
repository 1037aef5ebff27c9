//! Momentum Stiefel Adam (Kong, Wang and Tao, ICLR 2023, arXiv 2205.14173), for parameters whose
//! columns (rows, if wide) are orthonormal.
//!
//! The tangent at `X` is split as `X Y + V`, `Y` skew and `V ⟂ X`, and each part has its own moments.
//! With `a` the metric, `b = a / (a - 1)`, and a step `t` from 1 on the Euclidean gradient `G`:
//!
//! ```text
//! A  = XᵀG        gY = (1 - b)/2 (A - Aᵀ)        gV = G - X A
//! Y <- β1 Y - (1 - β1) gY        pY <- β2 pY + (1 - β2) gY²        pV <- β2 pV + (1 - β2) gV²
//! Z  = lr / (1 - β1^t) · Y / (√(pY / (1 - β2^t)) + ε)              X <- X E(Z)
//! V <- β1 V - (3a - 2)/2 lr V Y - (1 - β1) gV
//! w  = V / (√(pV / (1 - β2^t)) + ε),  made orthogonal to X
//! X <- X + lr w (XᵀX)        V <- V - lr X wᵀ V
//! X <- X (XᵀX)^(-1/2)
//! ```
//!
//! `pY` is symmetric with a zero diagonal, so `Z` stays skew. A square `X` has no `V`. Leading axes are
//! a batch: a stack of all factors of one size steps in the number of kernels that one factor needs.

use burn::config::Config;
use burn::optim::RecordState;
use burn::tensor::{Device, Tensor};
use soda_kernels::matmul;

use super::exponential::Exponential;
use super::metric::Metric;
use super::rule::{OnStiefel, Rule};
use crate::polar;
use crate::stack::Stack;

/// Settings of [`StiefelAdam`]; the defaults are those of SODA's released code.
#[derive(Config, Debug)]
pub struct StiefelAdamConfig {
    /// Decay of the first moment, `β1`.
    #[config(default = 0.9)]
    pub beta_1: f64,
    /// Decay of the second moment, `β2`.
    #[config(default = 0.999)]
    pub beta_2: f64,
    /// What keeps the division finite, `ε`.
    #[config(default = 1e-5)]
    pub epsilon: f64,
    /// The inner product on tangents.
    #[config(default = "Metric::Canonical")]
    pub metric: Metric,
    /// The map from skew matrices to (nearly) orthogonal ones.
    #[config(default = "Exponential::Euler")]
    pub exponential: Exponential,
}

/// Momentum Stiefel Adam; see the [module's formulas](self).
///
/// With the Euler map a square parameter's step reads nothing back from the device; a tall one's reads
/// one number.
///
/// The parameter must start on the manifold ([`crate::stiefel::check`]); a small distance is repaired
/// by the retraction that ends each step.
pub type StiefelAdam = OnStiefel<StiefelAdamConfig>;

/// The moments of [`StiefelAdam`] for a parameter `[..., n, m]`.
#[derive(Clone, Debug, RecordState)]
pub struct StiefelAdamState<const D: usize> {
    /// Steps taken.
    pub time: usize,
    /// `Y`, `[..., m, m]`, skew.
    pub y: Tensor<D>,
    /// `pY`, `[..., m, m]`.
    pub y_square: Tensor<D>,
    /// `V`, shaped as the parameter; absent where that is square.
    pub v: Option<Tensor<D>>,
    /// `pV`, shaped as the parameter; absent where that is square.
    pub v_square: Option<Tensor<D>>,
}

impl StiefelAdamConfig {
    /// A bound on `|Y / √pY|` per entry, bias corrections included.
    ///
    /// By Cauchy and Schwarz on the two running averages: `|Σ β1^i gᵢ| <= √(Σ (β1²/β2)^i) √(Σ β2^i gᵢ²)`.
    fn largest_entry(&self) -> f64 {
        let (beta_1, beta_2) = (self.beta_1, self.beta_2);
        let ratio = (beta_1 * beta_1 / beta_2).min(0.999_999);
        ((1.0 - beta_1) / ((1.0 - beta_2) * (1.0 - ratio)).sqrt()).max(1.0)
    }

    /// Newton-Schulz iterations that bring `X E(Z)` back, from what `Z` can be at most.
    fn iterations<const D: usize>(&self, lr: f64, stack: &Stack<D>) -> usize {
        let z = match self.exponential {
            Exponential::Euler => lr.abs() * self.largest_entry() * stack.m as f64,
            Exponential::Cayley | Exponential::Exact => 0.0,
        };
        polar::iterations(1.0 + z * z, stack.m, stack.compute())
    }
}

impl Rule for StiefelAdamConfig {
    type State<const D: usize> = StiefelAdamState<D>;

    fn advance<const D: usize>(
        &self,
        lr: f64,
        stack: &Stack<D>,
        x: Tensor<3>,
        g: Tensor<3>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<3>, Self::State<D>) {
        let Self { beta_1, beta_2, epsilon, metric, exponential } = *self;
        let time = state.as_ref().map_or(0, |state| state.time) + 1;
        let correction_1 = 1.0 - beta_1.powf(time as f64);
        let correction_2 = 1.0 - beta_2.powf(time as f64);
        let scaled = |moment: Tensor<3>, square: Tensor<3>| {
            moment / square.div_scalar(correction_2).sqrt().add_scalar(epsilon)
        };
        let moments = |state: Option<(Tensor<3>, Tensor<3>)>, g: &Tensor<3>| {
            let fresh = || (g.zeros_like(), g.zeros_like());
            let (moment, square) = state.unwrap_or_else(fresh);
            let moment = moment.mul_scalar(beta_1) - g.clone().mul_scalar(1.0 - beta_1);
            let square = square.mul_scalar(beta_2) + g.clone().square().mul_scalar(1.0 - beta_2);
            (moment, square)
        };

        let (state_y, state_v) = match state {
            None => (None, None),
            Some(state) => (
                Some((stack.fold_square(state.y), stack.fold_square(state.y_square))),
                state.v.zip(state.v_square).map(|(v, p)| (stack.fold(v), stack.fold(p))),
            ),
        };
        let a = matmul(x.clone().transpose(), g.clone());
        let gy = (a.clone() - a.clone().transpose()).mul_scalar(metric.skew_weight());
        let (y, y_square) = moments(state_y, &gy);
        let z = scaled(y.clone(), y_square.clone()).mul_scalar(lr / correction_1);
        let moved = exponential.step(x.clone(), z);
        let iterations = self.iterations(lr, stack);

        let (x, normal) = if stack.n == stack.m {
            (polar::newton_schulz(moved, iterations), None)
        } else {
            let gv = g - matmul(x, a);
            let decayed = state_v.map(|(v, p)| {
                // The middle term belongs to the old V; `moments` multiplies by β1 after it.
                let turn = matmul(v.clone(), y.clone()).mul_scalar(metric.turn() * lr / beta_1);
                (v - turn, p)
            });
            let (v, v_square) = moments(decayed, &gv);
            let w = scaled(v.clone(), v_square.clone());
            // The polar factor spans what X spans: this is w - X (XᵀX)⁻¹ Xᵀ w.
            let q = polar::newton_schulz(moved.clone(), iterations);
            let w = w.clone() - matmul(q.clone(), matmul(q.transpose(), w));
            let p = matmul(moved.clone(), matmul(w.clone().transpose(), v.clone()));
            let gram = matmul(moved.clone().transpose(), moved.clone());
            // V is turned along with X and pV is not, so that w has no bound known beforehand.
            let x = polar::retract(moved + matmul(w, gram).mul_scalar(lr));
            (x, Some((v - p.mul_scalar(lr), v_square)))
        };

        let (v, v_square) = normal.unzip();
        let state = StiefelAdamState {
            time,
            y: stack.unfold_square(y),
            y_square: stack.unfold_square(y_square),
            v: v.map(|v| stack.unfold(v)),
            v_square: v_square.map(|p| stack.unfold(p)),
        };
        (x, state)
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        StiefelAdamState {
            time: state.time,
            y: state.y.to_device(device),
            y_square: state.y_square.to_device(device),
            v: state.v.map(|v| v.to_device(device)),
            v_square: state.v_square.map(|p| p.to_device(device)),
        }
    }
}
