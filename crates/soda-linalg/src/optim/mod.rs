//! Optimizers of parameters with orthonormal columns, as burn `Optimizer`s.
//!
//! | optimizer | momentum | adaptive | retraction | reads per step |
//! |---|---|---|---|---|
//! | [`StiefelSgd`] | in the tangent space, without transport | no | polar | one |
//! | [`StiefelAdam`] | in the tangent space, without transport | per entry | polar | none (square, Euler) |
//! | [`RiemannianSgd`] | transported | no | any [`Retraction`](crate::stiefel::Retraction) | one |
//! | [`RiemannianAdam`] | transported | per matrix | any [`Retraction`](crate::stiefel::Retraction) | one |
//! | [`Pogo`] | in the surrounding space | per matrix | one polynomial step | none |
//!
//! A parameter is `[..., n, m]`: leading axes are a batch, so that all factors of one size step in one call.
//! Tall, square and wide matrices are accepted, and half precisions are computed in f32. The parameter must
//! start on the manifold ([`crate::stiefel::check_orthonormal`]).
//!
//! A read waits for the device: the number of iterations follows from a norm that is read back. The fields of
//! the states are the keys of burn's records.

mod exponential_map;
mod metric;
mod moments;
mod optimizer;
mod pogo;
mod riemannian_adam;
mod riemannian_sgd;
mod stiefel_adam;
mod stiefel_sgd;

pub use exponential_map::ExponentialMap;
pub use metric::Metric;
pub use moments::MomentsState;
pub use optimizer::{StiefelOptimizer, UpdateRule};
pub use pogo::{Pogo, PogoConfig};
pub use riemannian_adam::{RiemannianAdam, RiemannianAdamConfig};
pub use riemannian_sgd::{RiemannianSgd, RiemannianSgdConfig, RiemannianSgdState};
pub use stiefel_adam::{StiefelAdam, StiefelAdamConfig, StiefelAdamState};
pub use stiefel_sgd::{StiefelSgd, StiefelSgdConfig, StiefelSgdState};
