//! Riemannian Adam (Bécigneul and Ganea, Riemannian adaptive optimization methods, ICLR 2019, arXiv
//! 1810.00760).
//!
//! ```text
//! g = tangent(X, G)        M <- β1 M + (1 - β1) g        p <- β2 p + (1 - β2) |g|²
//! X' = R(X, -lr M̂ / (√p̂ + ε))        M <- tangent(X', M)
//! ```
//!
//! with the hats for bias correction. `p` is one number a matrix: entries have no meaning of their own
//! on a manifold, so the second moment is that of the norm, and a step has about length `lr`.

use burn::config::Config;
use burn::optim::{LearningRate, ModuleOptimizer, Optimizer};
use burn::tensor::{Device, Tensor};

use super::moments::{Moments, MomentsState};
use crate::stack::Stack;
use crate::stiefel::{Retraction, project};

/// Settings of [`RiemannianAdam`].
#[derive(Config, Debug)]
pub struct RiemannianAdamConfig {
    /// Decay of the first moment.
    #[config(default = 0.9)]
    pub beta_1: f64,
    /// Decay of the second moment.
    #[config(default = 0.999)]
    pub beta_2: f64,
    /// What keeps the division finite.
    #[config(default = 1e-8)]
    pub epsilon: f64,
    /// `R`.
    #[config(default = "Retraction::Polar")]
    pub retraction: Retraction,
}

impl Default for RiemannianAdamConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl RiemannianAdamConfig {
    /// An optimizer for all of a module's parameters.
    pub fn init(&self) -> ModuleOptimizer {
        ModuleOptimizer::from(RiemannianAdam::new(self))
    }
}

/// Riemannian Adam on the Stiefel manifold.
#[derive(Clone, Debug)]
pub struct RiemannianAdam {
    moments: Moments,
    retraction: Retraction,
}

impl RiemannianAdam {
    /// The optimizer with these settings.
    pub fn new(config: &RiemannianAdamConfig) -> Self {
        let RiemannianAdamConfig { beta_1, beta_2, epsilon, retraction } = *config;
        Self { moments: Moments { beta_1, beta_2, epsilon }, retraction }
    }
}

impl Optimizer for RiemannianAdam {
    type State<const D: usize> = MomentsState<D>;

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
        let x = stack.fold(tensor);
        let g = project(&x, stack.fold(grad));
        let (direction, mut state) = self.moments.step(&stack, g, state);
        let x = self.retraction.step_or_show(x, direction.mul_scalar(-lr));
        state.moment = stack.unfold(project(&x, stack.fold(state.moment)));
        (stack.unfold(x), Some(state))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        state.moved_to(device)
    }
}
