//! Momentum Stiefel Adam: the skew and the normal part of the tangent with moments of their own.

use burn::config::Config;
use burn::optim::RecordState;
use burn::tensor::{Device, Tensor};
use soda_kernels::matmul;

use super::exponential_map::ExponentialMap;
use super::metric::Metric;
use super::optimizer::{StiefelOptimizer, UpdateRule};
use crate::batched::{self, BatchLayout, newton_schulz, polar_retraction};

/// The settings of [`StiefelAdam`]; the defaults are those of SODA's released code.
#[derive(Config, Debug)]
pub struct StiefelAdamConfig {
    /// The decay of the first moment, `β1`.
    #[config(default = 0.9)]
    pub beta_1: f64,
    /// The decay of the second moment, `β2`.
    #[config(default = 0.999)]
    pub beta_2: f64,
    /// The number `ε` that keeps the division finite.
    #[config(default = 1e-5)]
    pub epsilon: f64,
    /// The inner product on tangents.
    #[config(default = "Metric::Canonical")]
    pub metric: Metric,
    /// The map `E` from skew-symmetric to orthogonal matrices.
    #[config(default = "ExponentialMap::Euler")]
    pub exponential: ExponentialMap,
}

/// Momentum Stiefel Adam (Kong, Wang and Tao, ICLR 2023, arXiv 2205.14173).
///
/// The tangent at `X` is `X Y + V`, with `Y` skew-symmetric and `XᵀV = 0`; each part has its own moments. `a`
/// is the number of the [`Metric`], `b = a / (a - 1)`, `G` the Euclidean gradient, and `t` the step, from 1
/// on:
///
/// ```text
/// A  = XᵀG        gY = (1 - b)/2 (A - Aᵀ)        gV = G - X A
/// Y <- β1 Y - (1 - β1) gY        pY <- β2 pY + (1 - β2) gY²        pV <- β2 pV + (1 - β2) gV²
/// Z  = lr / (1 - β1^t) · Y / (√(pY / (1 - β2^t)) + ε)              X <- X E(Z)
/// V <- β1 V - (3a - 2)/2 lr V Y - (1 - β1) gV
/// w  = V / (√(pV / (1 - β2^t)) + ε),  made orthogonal to X
/// X <- X + lr w (XᵀX)        V <- V - lr X wᵀ V
/// X <- X (XᵀX)^(-1/2)
/// ```
///
/// `pY` is symmetric with a zero diagonal, so that `Z` is skew-symmetric. A square `X` has no `V`.
///
/// With [`ExponentialMap::Euler`], the step of a square parameter reads nothing back from the device, and the
/// step of a tall one reads one number. The parameter must start on the manifold
/// ([`check_orthonormal`](crate::stiefel::check_orthonormal)); the last line of each step repairs a small
/// distance.
///
/// ```
/// use burn::optim::Optimizer;
/// use burn::tensor::{Device, Distribution};
/// use soda_linalg::optim::{StiefelAdam, StiefelAdamConfig};
/// use soda_linalg::stiefel;
///
/// let adam = StiefelAdam::new(&StiefelAdamConfig::new());
/// let x = stiefel::random_point([10, 4, 4], &Device::default()); // ten 4 x 4 matrices step together
/// let grad = x.random_like(Distribution::Default);
/// let (x, state) = adam.step(1e-2, x, grad.clone(), None);
/// let (x, _) = adam.step(1e-2, x, grad, state);
/// assert!(stiefel::orthogonality_error(&x)? < 2e-6);
/// # Ok::<(), soda_linalg::LinalgError>(())
/// ```
pub type StiefelAdam = StiefelOptimizer<StiefelAdamConfig>;

/// The state of [`StiefelAdam`] for a parameter `[..., n, m]`; the names of the fields are keys of burn's
/// records.
#[derive(Clone, Debug, RecordState)]
pub struct StiefelAdamState<const D: usize> {
    /// The number of steps taken.
    pub time: usize,
    /// The skew-symmetric first moment `Y`, `[..., k, k]`, with `k = min(n, m)`.
    pub y: Tensor<D>,
    /// The second moment `pY`, `[..., k, k]`.
    pub y_square: Tensor<D>,
    /// The normal first moment `V`, in the shape of the parameter; absent if the parameter is square.
    pub v: Option<Tensor<D>>,
    /// The second moment `pV`, in the shape of the parameter; absent if the parameter is square.
    pub v_square: Option<Tensor<D>>,
}

impl StiefelAdamConfig {
    /// A bound on `|Y / √pY|` per entry, with bias corrections.
    ///
    /// By Cauchy and Schwarz on the two running averages, `|Σ β1^i gᵢ| <= √(Σ (β1²/β2)^i) √(Σ β2^i gᵢ²)`.
    fn largest_entry(&self) -> f64 {
        let (beta_1, beta_2) = (self.beta_1, self.beta_2);
        let ratio = (beta_1 * beta_1 / beta_2).min(0.999_999);
        ((1.0 - beta_1) / ((1.0 - beta_2) * (1.0 - ratio)).sqrt()).max(1.0)
    }

    /// The Newton-Schulz iterations that return `X E(Z)` to the manifold, for the largest possible `Z`.
    fn iterations<const D: usize>(&self, lr: f64, layout: &BatchLayout<D>) -> usize {
        let z = match self.exponential {
            ExponentialMap::Euler => lr.abs() * self.largest_entry() * layout.m as f64,
            ExponentialMap::Cayley | ExponentialMap::Exact => 0.0,
        };
        batched::iterations(1.0 + z * z, layout.m, layout.compute_dtype())
    }

    /// The next first and second moment, `β1 M - (1 - β1) g` and `β2 p + (1 - β2) g²`.
    fn moments(
        &self,
        state: Option<(Tensor<3>, Tensor<3>)>,
        g: &Tensor<3>,
    ) -> (Tensor<3>, Tensor<3>) {
        let (beta_1, beta_2) = (self.beta_1, self.beta_2);
        let (moment, square) = state.unwrap_or_else(|| (g.zeros_like(), g.zeros_like()));
        let moment = moment.mul_scalar(beta_1) - g.clone().mul_scalar(1.0 - beta_1);
        let square = square.mul_scalar(beta_2) + g.clone().square().mul_scalar(1.0 - beta_2);
        (moment, square)
    }
}

impl UpdateRule for StiefelAdamConfig {
    type State<const D: usize> = StiefelAdamState<D>;

    fn update<const D: usize>(
        &self,
        lr: f64,
        layout: &BatchLayout<D>,
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

        let (state_y, state_v) = match state {
            None => (None, None),
            Some(state) => (
                Some((layout.flatten_square(state.y), layout.flatten_square(state.y_square))),
                state.v.zip(state.v_square).map(|(v, p)| (layout.flatten(v), layout.flatten(p))),
            ),
        };
        let a = matmul(x.clone().transpose(), g.clone());
        let gy = (a.clone() - a.clone().transpose()).mul_scalar(metric.skew_weight());
        let (y, y_square) = self.moments(state_y, &gy);
        let z = scaled(y.clone(), y_square.clone()).mul_scalar(lr / correction_1);
        let moved = exponential.step(x.clone(), z);
        let iterations = self.iterations(lr, layout);

        let (x, normal) = if layout.n == layout.m {
            (newton_schulz(moved, iterations), None)
        } else {
            let gv = g - matmul(x, a);
            let decayed = state_v.map(|(v, p)| {
                // The middle term is divided by β1, by which `moments` multiplies the sum.
                let weight = metric.normal_weight() * lr / beta_1;
                let vy = matmul(v.clone(), y.clone()).mul_scalar(weight);
                (v - vy, p)
            });
            let (v, v_square) = self.moments(decayed, &gv);
            let w = scaled(v.clone(), v_square.clone());
            // The polar factor Q spans the columns of X, so that w - Q Qᵀ w is w - X (XᵀX)⁻¹ Xᵀ w.
            let q = newton_schulz(moved.clone(), iterations);
            let w = w.clone() - matmul(q.clone(), matmul(q.transpose(), w));
            let p = matmul(moved.clone(), matmul(w.clone().transpose(), v.clone()));
            let gram = matmul(moved.clone().transpose(), moved.clone());
            // V rotates with X and pV does not, so that w has no bound known in advance.
            let x = polar_retraction(moved + matmul(w, gram).mul_scalar(lr));
            (x, Some((v - p.mul_scalar(lr), v_square)))
        };

        let (v, v_square) = normal.unzip();
        let state = StiefelAdamState {
            time,
            y: layout.unflatten_square(y),
            y_square: layout.unflatten_square(y_square),
            v: v.map(|v| layout.unflatten(v)),
            v_square: v_square.map(|p| layout.unflatten(p)),
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
