//! Decompositions on the host, by faer and Householder reflections. No other folder names faer.
//!
//! f64 tensors are computed in f64, all others in f32: the eight bits of a bf16 mantissa leave no
//! orthogonality. Each matrix is scaled by a power of two, which is exact, so that its largest entry is near
//! 1. Without the scale, squares of 1e30 overflow f32, and squares of 1e-30 vanish.

pub(crate) mod eigen;
mod householder;
mod matrix;
pub(crate) mod qr;
mod real;
pub(crate) mod rotation;
pub(crate) mod stiefel_logarithm;
pub(crate) mod svd;
mod transfer;

pub(crate) use matrix::HostMatrix;
pub(crate) use real::is_f64;
pub(crate) use transfer::{inner_device, upload_entries};
