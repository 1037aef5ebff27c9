//! Riemannian SGD with momentum: gradient, step and momentum all in the tangent space (Bonnabel,
//! Stochastic gradient descent on Riemannian manifolds, 2013).
//!
//! ```text
//! g = tangent(X, G)        M <- μ M + g        X' = R(X, -lr M)        M <- tangent(X', M)
//! ```
//!
//! `R` is any [`Retraction`]; the momentum is transported by projection. The metric is the Euclidean one.

use burn::config::Config;
use burn::optim::RecordState;
use burn::tensor::{Device, Tensor};

use super::rule::{OnStiefel, Rule};
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

/// Riemannian SGD on the Stiefel manifold.
pub type RiemannianSgd = OnStiefel<RiemannianSgdConfig>;

/// The momentum of [`RiemannianSgd`].
#[derive(Clone, Debug, RecordState)]
pub struct RiemannianSgdState<const D: usize> {
    /// `M`, a tangent at the parameter.
    pub momentum: Tensor<D>,
}

impl Rule for RiemannianSgdConfig {
    type State<const D: usize> = RiemannianSgdState<D>;

    fn advance<const D: usize>(
        &self,
        lr: f64,
        stack: &Stack<D>,
        x: Tensor<3>,
        g: Tensor<3>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<3>, Self::State<D>) {
        let Self { momentum, retraction } = *self;
        let g = project(&x, g);
        let m = match state {
            Some(state) => stack.fold(state.momentum).mul_scalar(momentum) + g,
            None => g,
        };
        let x = retraction.step_or_show(x, m.clone().mul_scalar(-lr));
        let m = project(&x, m);
        (x, RiemannianSgdState { momentum: stack.unfold(m) })
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        RiemannianSgdState { momentum: state.momentum.to_device(device) }
    }
}
