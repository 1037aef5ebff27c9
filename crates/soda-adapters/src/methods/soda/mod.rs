//! SODA: a shift of the spectrum and a Kronecker rotation of the basis of a frozen weight.
//!
//! The two axes compose, and each can be left out:
//!
//! | [rotation](RotationConfig) | [spectrum](SpectrumConfig) | method |
//! |---|---|---|
//! | input side | SVD, diagonal | SODA-SVD (arXiv 2405.21050) |
//! | input side | QR, diagonal or low-rank | SODA-QR (arXiv 2405.21050) |
//! | none | SVD, diagonal | SVDiff (arXiv 2303.11305) |
//! | any | none | Kronecker rotation alone |
//!
//! The rotation may be on the input side, the output side or both. Its factors are trained on the Stiefel
//! manifold or as Cayley transforms.

mod adapter;
mod config;
mod fused;
mod method;
mod rotation;
mod spectrum;

pub use adapter::Soda;
pub use config::{Basis, Parametrization, RotationConfig, Shift, Side, SodaConfig, SpectrumConfig};
pub use rotation::Rotation;
pub use spectrum::{LowRank, Spectrum};
