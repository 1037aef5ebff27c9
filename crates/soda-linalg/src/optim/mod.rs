//! Optimizers of parameters with orthonormal columns, as burn `Optimizer`s.
//!
//! | optimizer | momentum | adaptive | ends a step by | reads back |
//! |---|---|---|---|---|
//! | [`StiefelSgd`] | `Y`, `V`, not transported | no | polar | one number |
//! | [`StiefelAdam`] | `Y`, `V`, not transported | per entry | polar | nothing (Euler) |
//! | [`RiemannianSgd`] | transported | no | any [`Retraction`](crate::stiefel::Retraction) | one number |
//! | [`RiemannianAdam`] | transported | per matrix | any retraction | one number |
//! | [`Pogo`] | in the surrounding space | per matrix | one polynomial step | nothing |
//!
//! Each treats leading axes as a batch, takes tall, square and wide matrices, and computes half
//! precisions in f32. The parameter must start on the manifold ([`crate::stiefel::check`]).

pub mod exponential;
pub mod metric;
mod moments;
pub mod pogo;
pub mod riemannian_adam;
pub mod riemannian_sgd;
mod rule;
pub mod stiefel_adam;
pub mod stiefel_sgd;

pub use exponential::Exponential;
pub use metric::Metric;
pub use moments::MomentsState;
pub use pogo::{Pogo, PogoConfig};
pub use riemannian_adam::{RiemannianAdam, RiemannianAdamConfig};
pub use riemannian_sgd::{RiemannianSgd, RiemannianSgdConfig, RiemannianSgdState};
pub use rule::{OnStiefel, Rule};
pub use stiefel_adam::{StiefelAdam, StiefelAdamConfig, StiefelAdamState};
pub use stiefel_sgd::{StiefelSgd, StiefelSgdConfig, StiefelSgdState};
