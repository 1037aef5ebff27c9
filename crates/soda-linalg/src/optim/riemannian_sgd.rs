//! Riemannian SGD with momentum: gradient, step and momentum all in the tangent space (Bonnabel,
//! Stochastic gradient descent on Riemannian manifolds, 2013).
//!
//! ```text
//! g = tangent(X, G)        M <- μ M + g        X' = R(X, -lr M)        M <- tangent(X', M)
//! ```
//!
//! `R` is any [`Retraction`]; the momentum is transported by projection. The metric is the Euclidean one.

use burn::config::Config;
use burn::optim::{LearningRate, ModuleOptimizer, Optimizer, RecordState};
use burn::tensor::{Device, Tensor};

use crate::stack::Stack;
use crate::stiefel::{Retraction, project};

/// Settings of [`RiemannianSgd`].
#[derive(Config, Debug)]
pub struct RiemannianSgdConfig {
    /// `μ`.
    #[config(default = 0.9)]
    pub momentum: f64,
    /// `R`.
    #[config(default = "Retraction::Polar")]
    pub retraction: Retraction,
}

impl Default for RiemannianSgdConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl RiemannianSgdConfig {
    /// An optimizer for all of a module's parameters.
    pub fn init(&self) -> ModuleOptimizer {
        ModuleOptimizer::from(RiemannianSgd::new(self))
    }
}

/// Riemannian SGD on the Stiefel manifold.
#[derive(Clone, Debug)]
pub struct RiemannianSgd {
    config: RiemannianSgdConfig,
}

/// The momentum of [`RiemannianSgd`].
#[derive(Clone, Debug, RecordState)]
pub struct RiemannianSgdState<const D: usize> {
    /// `M`, a tangent at the parameter.
    pub momentum: Tensor<D>,
}

impl RiemannianSgd {
    /// The optimizer with these settings.
    pub fn new(config: &RiemannianSgdConfig) -> Self {
        Self { config: config.clone() }
    }
}

impl Optimizer for RiemannianSgd {
    type State<const D: usize> = RiemannianSgdState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let stack = Stack::of(&tensor);
        if stack.is_empty() {
            return (tensor, state);
        }
        let RiemannianSgdConfig { momentum, retraction } = self.config;
        let x = stack.fold(tensor);
        let g = project(&x, stack.fold(grad));
        let m = match state {
            Some(state) => stack.fold(state.momentum).mul_scalar(momentum) + g,
            None => g,
        };
        let x = retraction.step_or_show(x, m.clone().mul_scalar(-lr));
        let m = project(&x, m);
        (stack.unfold(x), Some(RiemannianSgdState { momentum: stack.unfold(m) }))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        RiemannianSgdState { momentum: state.momentum.to_device(device) }
    }
}
