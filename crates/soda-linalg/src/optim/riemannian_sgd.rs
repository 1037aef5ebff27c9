//! Riemannian SGD with momentum: gradient, step and momentum in the tangent space.

use burn::config::Config;
use burn::optim::RecordState;
use burn::tensor::{Device, Tensor};

use super::optimizer::{StiefelOptimizer, UpdateRule};
use crate::batched::BatchLayout;
use crate::stiefel::{Retraction, project_tangent_batch};

/// The settings of [`RiemannianSgd`].
#[derive(Config, Debug)]
pub struct RiemannianSgdConfig {
    /// The momentum `μ`.
    #[config(default = 0.9)]
    pub momentum: f64,
    /// The retraction `R` that ends a step.
    #[config(default = "Retraction::Polar")]
    pub retraction: Retraction,
}

/// Riemannian SGD with momentum on the Stiefel manifold, in the Euclidean metric (Bonnabel, Stochastic
/// gradient descent on Riemannian manifolds, 2013).
///
/// ```text
/// g = project_tangent(X, G)        M <- μ M + g        X' = R(X, -lr M)        M <- project_tangent(X', M)
/// ```
///
/// `G` is the Euclidean gradient. The momentum is transported by projection.
pub type RiemannianSgd = StiefelOptimizer<RiemannianSgdConfig>;

/// The state of [`RiemannianSgd`] for a parameter `[..., n, m]`; the name of the field is a key of burn's
/// records.
#[derive(Clone, Debug, RecordState)]
pub struct RiemannianSgdState<const D: usize> {
    /// The momentum `M`, a tangent at the parameter, in its shape.
    pub momentum: Tensor<D>,
}

impl UpdateRule for RiemannianSgdConfig {
    type State<const D: usize> = RiemannianSgdState<D>;

    fn update<const D: usize>(
        &self,
        lr: f64,
        layout: &BatchLayout<D>,
        x: Tensor<3>,
        g: Tensor<3>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<3>, Self::State<D>) {
        let Self { momentum, retraction } = *self;
        let g = project_tangent_batch(&x, g);
        let m = match state {
            Some(state) => layout.flatten(state.momentum).mul_scalar(momentum) + g,
            None => g,
        };
        let x = retraction.apply_or_sum(x, m.clone().mul_scalar(-lr));
        let m = project_tangent_batch(&x, m);
        (x, RiemannianSgdState { momentum: layout.unflatten(m) })
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        RiemannianSgdState { momentum: state.momentum.to_device(device) }
    }
}
