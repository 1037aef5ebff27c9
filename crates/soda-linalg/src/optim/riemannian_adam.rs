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
use burn::tensor::{Device, Tensor};

use super::moments::{Moments, MomentsState};
use super::rule::{OnStiefel, Rule};
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

/// Riemannian Adam on the Stiefel manifold.
pub type RiemannianAdam = OnStiefel<RiemannianAdamConfig>;

impl Rule for RiemannianAdamConfig {
    type State<const D: usize> = MomentsState<D>;

    fn advance<const D: usize>(
        &self,
        lr: f64,
        stack: &Stack<D>,
        x: Tensor<3>,
        g: Tensor<3>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<3>, Self::State<D>) {
        let Self { beta_1, beta_2, epsilon, retraction } = *self;
        let moments = Moments { beta_1, beta_2, epsilon };
        let (direction, mut state) = moments.step(stack, project(&x, g), state);
        let x = retraction.step_or_show(x, direction.mul_scalar(-lr));
        state.moment = stack.unfold(project(&x, stack.fold(state.moment)));
        (x, state)
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        state.moved_to(device)
    }
}
