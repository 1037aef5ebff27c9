//! Linear algebra for spectral and orthogonal fine-tuning, on burn tensors of any device.

mod error;
mod factorize;
mod host;
mod kron;
mod optim;
mod polar;
mod rotation_power;
pub mod stiefel;
mod svd;

pub use error::LinalgError;
pub use factorize::factorize;
pub use kron::{kron, kron_left, kron_right};
pub use optim::{Exponential, Metric, StiefelAdam, StiefelAdamConfig, StiefelAdamState};
pub use rotation_power::rotation_power;
pub use svd::Svd;

// `#[derive(RecordState)]` expands to `crate::…` paths.
use burn::optim::{RecordState, StateSink, StateSource};
