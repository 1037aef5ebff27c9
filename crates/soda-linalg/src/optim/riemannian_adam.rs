//! Riemannian Adam: moments in the tangent space, and one second moment for each matrix.

use burn::config::Config;
use burn::tensor::{Device, Tensor};

use super::moments::{Moments, MomentsState};
use super::optimizer::{StiefelOptimizer, UpdateRule};
use crate::batched::BatchLayout;
use crate::stiefel::{Retraction, project_tangent_batch};

/// The settings of [`RiemannianAdam`].
#[derive(Config, Debug)]
pub struct RiemannianAdamConfig {
    /// The decay of the first moment, `β1`.
    #[config(default = 0.9)]
    pub beta_1: f64,
    /// The decay of the second moment, `β2`.
    #[config(default = 0.999)]
    pub beta_2: f64,
    /// The number `ε` that keeps the division finite.
    #[config(default = 1e-8)]
    pub epsilon: f64,
    /// The retraction `R` that ends a step.
    #[config(default = "Retraction::Polar")]
    pub retraction: Retraction,
}

/// Riemannian Adam on the Stiefel manifold (Bécigneul and Ganea, Riemannian adaptive optimization methods,
/// ICLR 2019, arXiv 1810.00760).
///
/// ```text
/// g = project_tangent(X, G)        M <- β1 M + (1 - β1) g        p <- β2 p + (1 - β2) |g|²
/// X' = R(X, -lr M̂ / (√p̂ + ε))        M <- project_tangent(X', M)
/// ```
///
/// `G` is the Euclidean gradient, and hats are bias corrections. `p` is one number for each matrix, because
/// single entries have no meaning on a manifold. The length of a step is about `lr`.
pub type RiemannianAdam = StiefelOptimizer<RiemannianAdamConfig>;

impl UpdateRule for RiemannianAdamConfig {
    type State<const D: usize> = MomentsState<D>;

    fn update<const D: usize>(
        &self,
        lr: f64,
        layout: &BatchLayout<D>,
        x: Tensor<3>,
        g: Tensor<3>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<3>, Self::State<D>) {
        let Self { beta_1, beta_2, epsilon, retraction } = *self;
        let moments = Moments { beta_1, beta_2, epsilon };
        let (direction, mut state) = moments.step(layout, project_tangent_batch(&x, g), state);
        let x = retraction.apply_or_sum(x, direction.mul_scalar(-lr));
        let moment = layout.flatten(state.moment);
        state.moment = layout.unflatten(project_tangent_batch(&x, moment));
        (x, state)
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        state.moved_to(device)
    }
}
