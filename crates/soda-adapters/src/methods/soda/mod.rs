//! SODA: a shift of the spectrum and a rotation of the basis of a frozen weight.
//!
//! The two axes compose, and each can be left out:
//!
//! | [rotation](RotationConfig) | [spectrum](SpectrumConfig) | method |
//! |---|---|---|
//! | input side | SVD, diagonal | SODA-SVD (arXiv 2405.21050) |
//! | input side | QR, diagonal or low-rank | SODA-QR (arXiv 2405.21050) |
//! | none | SVD, diagonal | SVDiff (arXiv 2303.11305) |
//! | any | none | rotation alone |
//! | subspace | SVD, `k` singular values | SODA in a subspace, a LoRA of rank `r + k` |
//! | principal subspace, between scales | none | PSOFT (arXiv 2505.11235), a LoRA of rank `r` |
//! | group and shuffle, with a scale of outputs | none | GSOFT (arXiv 2406.10019) |
//! | reflections | none | HRA (arXiv 2405.17484) |
//!
//! The rotation may be on the input side, the output side or both. Its factors are trained on the Stiefel
//! manifold or as Cayley transforms.
//!
//! A rotation has the form of a Kronecker product, of two with a permutation between, of two block-diagonal
//! matrices with a shuffle between, of a product of reflections, or of a full rotation in a subspace of
//! dimension `r`.
//!
//! The subspace is where the gradient of the loss lies, by a [calibration](crate::Probe); where the
//! activations lie; or in the leading singular vectors.

mod adapter;
mod allocation;
mod change;
mod checks;
mod config;
mod fused;
mod merge;
mod method;
mod reflections;
mod rotation;
mod spectrum;
mod truncated;

pub use adapter::Soda;
pub use config::{
    Basis, CalibrationConfig, Parametrization, RotationConfig, Selection, Shift, Side, SodaConfig,
    SpectrumConfig, Structure, Subspace,
};
pub use rotation::{Rotation, Scales};
pub use spectrum::{LowRank, Spectrum};
pub use truncated::TruncatedSpectrum;
