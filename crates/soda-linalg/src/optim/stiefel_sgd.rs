//! Momentum Stiefel SGD (Kong, Wang and Tao, ICLR 2023, arXiv 2205.14173), for parameters whose columns
//! (rows, if wide) are orthonormal.
//!
//! Heavy-ball momentum that stays in the tangent space without being transported: the tangent at `X` is
//! `X Y + V`, `Y` skew and `V ⟂ X`. With `a` the metric and `b = a / (a - 1)`, momentum `μ` and
//! dampening `d`:
//!
//! ```text
//! A = XᵀG        gY = (1 - b)/2 (A - Aᵀ)        gV = G - X A
//! V <- μ V - (3a - 2)/2 lr V Y - (1 - d) gV     (without the middle term where μ = 0)
//! Y <- μ Y - (1 - d) gY
//! X <- X E(lr Y)
//! P = X VᵀV        X <- X + lr V (XᵀX)        V <- V - lr P
//! X <- X (XᵀX)^(-1/2)
//! ```
//!
//! A square `X` has no `V`. Leading axes are a batch.

use burn::config::Config;
use burn::optim::RecordState;
use burn::tensor::{Device, Tensor};
use soda_kernels::matmul;

use super::exponential::Exponential;
use super::metric::Metric;
use super::rule::{OnStiefel, Rule};
use crate::batch;
use crate::polar;
use crate::stack::Stack;

/// Settings of [`StiefelSgd`].
#[derive(Config, Debug)]
pub struct StiefelSgdConfig {
    /// `μ`.
    #[config(default = 0.9)]
    pub momentum: f64,
    /// `d`.
    #[config(default = 0.0)]
    pub dampening: f64,
    /// The inner product on tangents.
    #[config(default = "Metric::Canonical")]
    pub metric: Metric,
    /// The map from skew matrices to (nearly) orthogonal ones.
    #[config(default = "Exponential::Euler")]
    pub exponential: Exponential,
}

/// Momentum Stiefel SGD. Reads one number back a step, to know how long to retract.
pub type StiefelSgd = OnStiefel<StiefelSgdConfig>;

/// The momentum of [`StiefelSgd`] for a parameter `[..., n, m]`.
#[derive(Clone, Debug, RecordState)]
pub struct StiefelSgdState<const D: usize> {
    /// `Y`, `[..., m, m]`, skew.
    pub y: Tensor<D>,
    /// `V`, shaped as the parameter; absent where that is square.
    pub v: Option<Tensor<D>>,
}

impl Rule for StiefelSgdConfig {
    type State<const D: usize> = StiefelSgdState<D>;

    fn advance<const D: usize>(
        &self,
        lr: f64,
        stack: &Stack<D>,
        x: Tensor<3>,
        g: Tensor<3>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<3>, Self::State<D>) {
        let Self { momentum, dampening, metric, exponential } = *self;
        let (old_y, old_v) = match state {
            None => (None, None),
            Some(state) => (Some(stack.fold_square(state.y)), state.v.map(|v| stack.fold(v))),
        };

        let a = matmul(x.clone().transpose(), g.clone());
        let gy = (a.clone() - a.clone().transpose()).mul_scalar(metric.skew_weight());
        let v = (stack.n > stack.m).then(|| {
            let push = (g - matmul(x.clone(), a)).mul_scalar(1.0 - dampening);
            match old_v.zip(old_y.clone()) {
                Some((v, y)) if momentum != 0.0 => {
                    let turn = matmul(v.clone(), y).mul_scalar(metric.turn() * lr);
                    v.mul_scalar(momentum) - turn - push
                }
                _ => -push,
            }
        });
        let push = gy.mul_scalar(1.0 - dampening);
        let y = match old_y {
            Some(y) => y.mul_scalar(momentum) - push,
            None => -push,
        };

        let mut x = exponential.step(x, y.clone().mul_scalar(lr));
        let v = v.map(|v| {
            let p = matmul(x.clone(), batch::gram(&v));
            x = x.clone() + matmul(v.clone(), batch::gram(&x)).mul_scalar(lr);
            v - p.mul_scalar(lr)
        });
        let state = StiefelSgdState { y: stack.unfold_square(y), v: v.map(|v| stack.unfold(v)) };
        (polar::retract(x), state)
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        StiefelSgdState { y: state.y.to_device(device), v: state.v.map(|v| v.to_device(device)) }
    }
}
