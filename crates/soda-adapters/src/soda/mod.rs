//! SODA: a shift of the spectrum and a rotation of the basis of a frozen weight.
//!
//! Two axes that compose, each of which may be left out:
//!
//! | rotation | spectrum | method |
//! |---|---|---|
//! | yes | yes | SODA-SVD (arXiv 2405.21050) |
//! | no | yes | SVDiff (arXiv 2303.11305) |
//! | yes | no | Kronecker rotation alone |

mod adapter;
mod config;
mod rotation;
mod spectrum;

pub use adapter::Soda;
pub use config::{RotationConfig, SodaConfig, SpectrumConfig};
pub use rotation::Rotation;
pub use spectrum::Spectrum;
