//! Linear algebra for spectral and orthogonal fine-tuning, on burn tensors of any device.
//!
//! The crate has thin decompositions, Kronecker products that are never formed, the Stiefel manifold and
//! optimizers on it. Functions take tensors and return tensors.
//!
//! A function whose data can be invalid returns a [`LinalgError`]; products panic on shapes that do not
//! match, as burn's own do. Only [`SvdCache`] reads or writes files.
//!
//! # Decompositions
//!
//! | type | formula | convention that makes it unique | flops, `m >= n` |
//! |---|---|---|---|
//! | [`Svd`] | `A = U diag(s) Vᵀ` | largest entry of each `u` positive | about `14 m n² + 8 n³` |
//! | [`Qr`], [`Lq`] | `A = Q R`, `A = L Q` | diagonal `>= 0` | `4 m n² - 4/3 n³` |
//! | [`Polar`] | `A = Q P` | unique at full rank | an SVD and two products |
//! | [`SymmetricEigen`] | `A = V diag(λ) Vᵀ` | largest entry of each `v` positive | about `9 n³` |
//!
//! (Golub and Van Loan, Matrix Computations, 5.2, 8.3 and 8.6.) f64 matrices are decomposed in f64 and all
//! others in f32, on the host. [`Svd::thin_batch`] decomposes many large matrices on a GPU with a vendor's
//! BLAS library. [`Svd::thin_batch_via_f64`] computes in f64 and rounds once.
//!
//! # Products with structured matrices
//!
//! The products run on the device of their arguments and support autodiff. For a width `N = n1 n2 … nm`:
//!
//! | function | formula | multiply-adds per row | dense |
//! |---|---|---|---|
//! | [`kron_right`], [`kron_left`] | `x (A1 ⊗ … ⊗ Am)` | `N Σ nᵢ` | `N²` |
//! | [`block_diag_right`], [`block_diag_left`] | `x diag(B1, …, Bb)` | `N²/b` | `N²` |
//!
//! A Kronecker product has its own backward pass, which saves the arguments alone. It takes the crate feature
//! of the backend, `flex` or `cube`; on other backends burn saves every intermediate tensor.
//! [`apply_autograd`] applies other functions with their own backward pass.
//!
//! [`KroneckerMatrix`] composes, inverts and interpolates Kronecker products factor by factor, and
//! [`factor_sizes`] chooses the sizes of the factors.
//!
//! # Rotations and the Stiefel manifold
//!
//! [`cayley()`] and [`cayley_neumann`] parametrise rotations by skew-symmetric matrices. [`rotation_log`],
//! [`rotation_exp`] and [`rotation_power`] follow geodesics of one rotation. [`stiefel`] has tangents,
//! retractions, geodesics and logarithms of matrices with orthonormal columns, and [`optim`] has burn
//! optimizers for them.
//!
//! ```
//! use burn::optim::Optimizer;
//! use burn::tensor::{Device, Tensor};
//! use soda_linalg::optim::{StiefelAdam, StiefelAdamConfig};
//! use soda_linalg::{factor_sizes, kron_left, stiefel};
//!
//! // Rotate a [6, 2] weight towards another by a Kronecker product of rotations.
//! let device = Device::default();
//! let w = Tensor::<2>::from_data([[1., 0.], [2., 1.], [0., 1.], [1., 1.], [0., 2.], [3., 0.]], &device);
//! let target = w.clone().flip([0]);
//! let sizes = factor_sizes(6, 2)?; // 2 and 3
//! let mut factors: Vec<_> = sizes.iter().map(|&n| Tensor::<2>::eye(n, &device)).collect();
//! let optimizer = StiefelAdam::new(&StiefelAdamConfig::new());
//! let mut states = vec![None; factors.len()];
//! let loss = |factors: &[Tensor<2>]| (kron_left(factors, w.clone()) - target.clone()).square().sum();
//! let before: f32 = loss(&factors).into_scalar();
//! for _ in 0..50 {
//!     let leaves: Vec<_> = factors.iter().map(|r| r.clone().autodiff().require_grad()).collect();
//!     let grads = loss(&leaves).backward();
//!     for ((r, leaf), state) in factors.iter_mut().zip(&leaves).zip(&mut states) {
//!         let grad = leaf.grad(&grads).ok_or("no gradient")?;
//!         (*r, *state) = optimizer.step(0.02, r.clone(), grad, state.take());
//!     }
//! }
//! assert!(loss(&factors).into_scalar::<f32>() < 0.5 * before);
//! assert!(stiefel::orthogonality_error(&factors[1])? < 2e-6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod backend;
mod batched;
mod block_diagonal;
mod cayley;
mod eigen;
mod error;
mod host;
mod kronecker;
pub mod optim;
mod polar;
mod qr;
mod rotation;
pub mod stiefel;
mod svd;

pub use backend::{AutogradFunction, apply_autograd};
pub use block_diagonal::{block_diag_left, block_diag_right};
pub use cayley::{cayley, cayley_neumann, skew};
pub use eigen::SymmetricEigen;
pub use error::LinalgError;
pub use kronecker::{
    KroneckerGradients, KroneckerMatrix, KroneckerRows, factor_sizes, factor_sizes_within, kron,
    kron_left, kron_right,
};
pub use polar::Polar;
pub use qr::{Lq, Qr};
pub use rotation::{rotation_exp, rotation_log, rotation_power};
pub use svd::{SIGN_CONVENTION, Svd, SvdCache};

// `#[derive(RecordState)]` expands to `crate::…` paths.
use burn::optim::{RecordState, StateSink, StateSource};
