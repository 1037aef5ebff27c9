//! SODA: a shift of the spectrum and a rotation of the basis of a frozen weight.
//!
//! Axes that compose, each of which may be left out:
//!
//! | [rotation](RotationConfig) | [spectrum](SpectrumConfig) | method |
//! |---|---|---|
//! | input side | SVD, diagonal | SODA-SVD (arXiv 2405.21050) |
//! | input side | QR, diagonal or low-rank | SODA-QR (the same) |
//! | none | SVD, diagonal | SVDiff (arXiv 2303.11305) |
//! | any | none | Kronecker rotation alone |
//!
//! and the rotation may be on the output side or both, on the Stiefel manifold or by the Cayley transform.

mod adapter;
mod config;
mod rotation;
mod spectrum;
mod turned;

pub use adapter::Soda;
pub use config::{Basis, Parametrization, RotationConfig, Shift, Side, SodaConfig, SpectrumConfig};
pub use rotation::Rotation;
pub use spectrum::{LowRank, Spectrum};
