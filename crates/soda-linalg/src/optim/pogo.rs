//! POGO (Javaloy and Vergari, An embarrassingly simple way to optimize orthogonal matrices at scale,
//! arXiv 2602.14656): a relative gradient step, then one step back towards the manifold.
//!
//! ```text
//! U = the base optimizer's direction for G
//! M = X - lr/2 (U XᵀX - X UᵀX)        X <- M + M (I - MᵀM) / 2
//! ```
//!
//! A few products, no inverse, no iteration and nothing read back: the cheapest step here. In return
//! the distance it leaves is `3/4 |MᵀM - I|²`, hence of order `lr⁴`, instead of rounding: 1e-8 at
//! `lr = 0.01`, since the direction of the base optimizer (Adam with one second moment a matrix) has
//! norm about 1, and too much for an adapter's file above `lr = 0.03`.

use burn::config::Config;
use burn::tensor::{Device, Tensor};
use soda_kernels::matmul;

use super::moments::{Moments, MomentsState};
use super::rule::{OnStiefel, Rule};
use crate::batch;
use crate::stack::Stack;

/// Settings of [`Pogo`]'s base optimizer.
#[derive(Config, Debug)]
pub struct PogoConfig {
    /// Decay of the first moment.
    #[config(default = 0.9)]
    pub beta_1: f64,
    /// Decay of the second moment.
    #[config(default = 0.999)]
    pub beta_2: f64,
    /// What keeps the division finite.
    #[config(default = 1e-8)]
    pub epsilon: f64,
}

/// POGO on the Stiefel manifold.
pub type Pogo = OnStiefel<PogoConfig>;

impl Rule for PogoConfig {
    type State<const D: usize> = MomentsState<D>;

    fn advance<const D: usize>(
        &self,
        lr: f64,
        stack: &Stack<D>,
        x: Tensor<3>,
        g: Tensor<3>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<3>, Self::State<D>) {
        let Self { beta_1, beta_2, epsilon } = *self;
        let (u, state) = Moments { beta_1, beta_2, epsilon }.step(stack, g, state);
        let inner = matmul(u.clone().transpose(), x.clone());
        let relative = matmul(u, batch::gram(&x)) - matmul(x.clone(), inner);
        let m = x - relative.mul_scalar(0.5 * lr);
        let defect = batch::identity(&m) - batch::gram(&m);
        let x = m.clone() + matmul(m, defect).mul_scalar(0.5);
        (x, state)
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        state.moved_to(device)
    }
}
