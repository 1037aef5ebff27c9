//! Optimizers of parameters with orthonormal columns, as burn `Optimizer`s.

mod exponential;
mod metric;
mod stiefel_adam;

pub use exponential::Exponential;
pub use metric::Metric;
pub use stiefel_adam::{StiefelAdam, StiefelAdamConfig, StiefelAdamState};
