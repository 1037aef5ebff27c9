//! Momentum Stiefel SGD: heavy-ball momentum that stays in the tangent space without transport.

use burn::config::Config;
use burn::optim::RecordState;
use burn::tensor::{Device, Tensor};
use soda_kernels::matmul;

use super::exponential_map::ExponentialMap;
use super::metric::Metric;
use super::optimizer::{StiefelOptimizer, UpdateRule};
use crate::batched::{BatchLayout, gram, polar_retraction};

/// The settings of [`StiefelSgd`].
#[derive(Config, Debug)]
pub struct StiefelSgdConfig {
    /// The momentum `μ`.
    #[config(default = 0.9)]
    pub momentum: f64,
    /// The dampening `d` of the gradient in the momentum.
    #[config(default = 0.0)]
    pub dampening: f64,
    /// The inner product on tangents.
    #[config(default = "Metric::Canonical")]
    pub metric: Metric,
    /// The map `E` from skew-symmetric to orthogonal matrices.
    #[config(default = "ExponentialMap::Euler")]
    pub exponential: ExponentialMap,
}

/// Momentum Stiefel SGD (Kong, Wang and Tao, ICLR 2023, arXiv 2205.14173).
///
/// The tangent at `X` is `X Y + V`, with `Y` skew-symmetric and `XᵀV = 0`. `a` is the number of the
/// [`Metric`], `b = a / (a - 1)`, `μ` the momentum, `d` the dampening and `G` the Euclidean gradient:
///
/// ```text
/// A = XᵀG        gY = (1 - b)/2 (A - Aᵀ)        gV = G - X A
/// V <- μ V - (3a - 2)/2 lr V Y - (1 - d) gV     (without the middle term if μ = 0)
/// Y <- μ Y - (1 - d) gY
/// X <- X E(lr Y)
/// P = X VᵀV        X <- X + lr V (XᵀX)        V <- V - lr P
/// X <- X (XᵀX)^(-1/2)
/// ```
///
/// A square `X` has no `V`. Each step reads one number back from the device, which gives the iterations of
/// the last line.
pub type StiefelSgd = StiefelOptimizer<StiefelSgdConfig>;

/// The state of [`StiefelSgd`] for a parameter `[..., n, m]`; the names of the fields are keys of burn's
/// records.
#[derive(Clone, Debug, RecordState)]
pub struct StiefelSgdState<const D: usize> {
    /// The skew-symmetric momentum `Y`, `[..., k, k]`, with `k = min(n, m)`.
    pub y: Tensor<D>,
    /// The normal momentum `V`, in the shape of the parameter; absent if the parameter is square.
    pub v: Option<Tensor<D>>,
}

impl UpdateRule for StiefelSgdConfig {
    type State<const D: usize> = StiefelSgdState<D>;

    fn update<const D: usize>(
        &self,
        lr: f64,
        layout: &BatchLayout<D>,
        x: Tensor<3>,
        g: Tensor<3>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<3>, Self::State<D>) {
        let Self { momentum, dampening, metric, exponential } = *self;
        let (old_y, old_v) = match state {
            None => (None, None),
            Some(state) => {
                (Some(layout.flatten_square(state.y)), state.v.map(|v| layout.flatten(v)))
            }
        };

        let a = matmul(x.clone().transpose(), g.clone());
        let gy = (a.clone() - a.clone().transpose()).mul_scalar(metric.skew_weight());
        let v = (layout.n > layout.m).then(|| {
            let gv = (g - matmul(x.clone(), a)).mul_scalar(1.0 - dampening);
            match old_v.zip(old_y.clone()) {
                Some((v, y)) if momentum != 0.0 => {
                    let vy = matmul(v.clone(), y).mul_scalar(metric.normal_weight() * lr);
                    v.mul_scalar(momentum) - vy - gv
                }
                _ => -gv,
            }
        });
        let gy = gy.mul_scalar(1.0 - dampening);
        let y = match old_y {
            Some(y) => y.mul_scalar(momentum) - gy,
            None => -gy,
        };

        let mut x = exponential.step(x, y.clone().mul_scalar(lr));
        let v = v.map(|v| {
            let p = matmul(x.clone(), gram(&v));
            x = x.clone() + matmul(v.clone(), gram(&x)).mul_scalar(lr);
            v - p.mul_scalar(lr)
        });
        let state =
            StiefelSgdState { y: layout.unflatten_square(y), v: v.map(|v| layout.unflatten(v)) };
        (polar_retraction(x), state)
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        StiefelSgdState { y: state.y.to_device(device), v: state.v.map(|v| v.to_device(device)) }
    }
}
