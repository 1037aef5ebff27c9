//! Linear algebra for spectral and orthogonal fine-tuning, on burn tensors of any device.

mod batch;
mod block;
mod cayley;
mod eigen;
mod error;
mod factorize;
mod host;
mod kron;
mod optim;
mod polar;
mod qr;
mod rotation_power;
mod stack;
pub mod stiefel;
mod svd;

pub use block::{block_left, block_right};
pub use cayley::{cayley, cayley_neumann, skew};
pub use eigen::SymmetricEigen;
pub use error::LinalgError;
pub use factorize::factorize;
pub use kron::{kron, kron_left, kron_right};
pub use optim::{Exponential, Metric, StiefelAdam, StiefelAdamConfig, StiefelAdamState};
pub use polar::Polar;
pub use qr::{Lq, Qr};
pub use rotation_power::rotation_power;
pub use svd::Svd;

// `#[derive(RecordState)]` expands to `crate::…` paths.
use burn::optim::{RecordState, StateSink, StateSource};
