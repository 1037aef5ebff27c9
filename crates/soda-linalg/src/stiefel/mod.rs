//! The geometry of the Stiefel manifold `St(n, m)`: matrices `X`, `n x m`, with orthonormal columns,
//! `XᵀX = I`.
//!
//! A wide matrix has orthonormal rows instead; a square one is orthogonal; a vector is a point of the sphere.
//! Every function takes tensors of any rank, `[..., n, m]`, with leading axes as a batch. The functions run
//! on any device, in the dtype of their arguments, with half precisions computed in f32.
//!
//! | function | result | cost |
//! |---|---|---|
//! | [`project_tangent`] | the projection onto the tangent space | 2 products of `n x m` by `m x m` |
//! | [`transport`] | a tangent at another point, by projection | 2 products |
//! | [`Retraction::apply`] | a point near `X + U` | 2 products per iteration (polar) |
//! | [`geodesic()`] | `exp(t W) X`, the canonical geodesic | one `n x n` exponential |
//! | [`logarithm()`] | the inverse of the geodesic, on the host | a few `2m x 2m` logarithms |
//! | [`distance`] | the length of the logarithm | the cost of [`logarithm()`] |
//! | [`random_point`] | a uniform (Haar) random point | the polar factor of a Gaussian |
//! | [`orthogonality_error`], [`check_orthonormal`] | `max \|XᵀX - I\|` | `n m²` multiply-adds on the host |
//!
//! Sources: Edelman, Arias and Smith, The geometry of algorithms with orthogonality constraints (SIAM J.
//! Matrix Anal. 1998); Absil, Mahony and Sepulchre, Optimization algorithms on matrix manifolds (2008),
//! chapters 3 to 5.

mod geodesic;
mod logarithm;
mod orthogonality;
mod random;
mod retraction;
mod tangent;

pub use geodesic::geodesic;
pub use logarithm::{distance, logarithm};
pub use orthogonality::{check_orthonormal, orthogonality_error};
pub use random::random_point;
pub use retraction::Retraction;
pub(crate) use tangent::project_tangent_batch;
pub use tangent::{project_tangent, transport};
