//! Linear algebra for spectral and orthogonal fine-tuning, on burn tensors of any device: thin
//! decompositions, Kronecker products that are never formed, the Stiefel manifold and optimizers on it.
//!
//! Tensors in, tensors out. No backend is named here, nothing is printed, and only [`SvdCache`] touches
//! a disk. A function that can meet bad data returns a [`LinalgError`] that names the place; the
//! products panic on shapes that do not fit, as burn's own do.
//!
//! # Decompositions
//!
//! | | formula | rule that makes it one | flops, `m >= n` |
//! |---|---|---|---|
//! | [`Svd`] | `A = U diag(s) Vᵀ` | largest entry of each `u` positive | about `14 m n² + 8 n³` |
//! | [`Qr`], [`Lq`] | `A = Q R`, `A = L Q` | diagonal `>= 0` | `4 m n² - 4/3 n³` |
//! | [`Polar`] | `A = Q P` | unique at full rank | an SVD and two products |
//! | [`SymmetricEigen`] | `A = V diag(λ) Vᵀ` | largest entry of each `v` positive | about `9 n³` |
//!
//! (Golub and Van Loan, Matrix Computations, 5.2, 8.3 and 8.6.) f64 stays f64, everything else is
//! decomposed in f32; [`Svd::thin_batch`] spreads many matrices over the cores, [`Svd::thin_batch_rounded`] decomposes
//! them in f64 and rounds once, for factors that are to stand for their matrix.
//!
//! Milliseconds for the thin SVD of a random f32 matrix, four cores, from `benches/svd.rs` and numpy 2.4
//! (OpenBLAS) on the same machine:
//!
//! | | 64 | 320 | 640 | 1280 | 2048 x 1280 |
//! |---|---|---|---|---|---|
//! | this crate (faer) | 0.7 | 13 | 78 | 322 | 487 |
//! | LAPACK | | 16 | 93 | 543 | 1010 |
//! | nalgebra | 0.6 | 61 | 507 | | |
//!
//! nalgebra is level up to 64 and far behind above (33 times as long at 1280, 8 times at 2048 x 1280, in
//! a run beside other work), so that faer decomposes every size. Milliseconds for QR, in that same run:
//!
//! | | 8 | 64 | 320 | 1280 | 2560 x 320 |
//! |---|---|---|---|---|---|
//! | this crate (blocks of faer's reflections) | 0.006 | 0.19 | 3.6 | 250 | 53 |
//! | nalgebra, without tensors | 0.001 | 0.10 | 9.6 | 1545 | 283 |
//!
//! All of these run on the host. Many large matrices on a GPU with a vendor's products are the exception:
//! [`Svd::thin_batch`] (and [`SvdCache`], which calls it) decomposes them there, in matrix products alone. Seconds
//! on an H100, beside reading back, decomposing on its 16 cores, and uploading:
//!
//! | | 560 of SDXL | 32 of 1280 | 16 of 1280 x 2048 | 1 of 1280 | 32 of 640 | 1 of 640 | 64 of 320 |
//! |---|---|---|---|---|---|---|---|
//! | round trip | 45.4 | 3.08 | 2.79 | 0.62 | 0.44 | 0.09 | 0.17 |
//! | products | 20.4 | 1.13 | 0.95 | 0.47 | 0.39 | 0.35 | 0.83 |
//!
//! Once compiled, that is: the kernels take 18 s at their first use. On a CPU products take ten times as long as
//! the decomposition (`docs/math.md`).
//!
//! All 560 attention weights of SDXL take two minutes on four cores, and 2.8 s from [`SvdCache`] (6.7 GB of files, in
//! memory; `benches/svd.rs`, `the_whole_of_sdxl`), of which the hash is a third and fresh memory the rest. On a machine that
//! is busy and short of memory they took 7.6 s with each result dropped after use, 12.5 to 13.9 s with all kept.
//!
//! # Kronecker and block-diagonal products, on the device
//!
//! For a width `N = n1 n2 … nm`, multiply-adds per row:
//!
//! | | formula | cost | dense |
//! |---|---|---|---|
//! | [`kron_right`], [`kron_left`] | `x (A1 ⊗ … ⊗ Am)` | `N Σ nᵢ` | `N²` |
//! | [`block_right`], [`block_left`] | `x diag(B1, …, Bb)` | `N²/b` | `N²` |
//! | [`cayley()`], [`cayley_neumann`] | `(I - A)⁻¹ (I + A)` | a few products | |
//!
//! At `N = 1280` with factors (4, 16, 20), on four cores, the dense product takes so many times as long
//! (`benches/kron.rs`, one run, the fastest of twenty):
//!
//! | | 64 tokens | 256 | 1024 | 4096 | a 1280 x 1280 weight |
//! |---|---|---|---|---|---|
//! | forward | 7.3 | 6.4 | 9.0 | 11.8 | 7.7 |
//! | with its backward | 5.3 | 3.9 | 3.9 | 2.9 | 4.9 |
//!
//! The gradient is hand-written: on the tape there is the operand and nothing else, and arrays above some
//! megabytes go through in pieces that stay in the cache. That takes the feature of the backend, `flex`
//! or `cube`; without it burn's tape keeps every intermediate array.
//!
//! All of these work on the tape. [`with_gradient`] puts a function with a gradient of its own there, in which [`KronRows`] may
//! be a part. [`Kronecker`] composes, inverts and interpolates such products factor
//! by factor; [`factorize()`] and [`factorize_within`] choose the sizes.
//!
//! # The Stiefel manifold
//!
//! [`stiefel`] has the geometry (tangents, retractions, geodesics, logarithms), [`optim`] the optimizers:
//! burn `Optimizer`s that treat leading axes as a batch, so that all factors of one size step in the
//! kernels of one.
//!
//! ```
//! use burn::optim::Optimizer;
//! use burn::tensor::{Device, Tensor};
//! use soda_linalg::{StiefelAdam, StiefelAdamConfig, factorize, kron_left, stiefel};
//!
//! // Rotate a [6, 2] weight towards another by a Kronecker product of rotations.
//! let device = Device::default();
//! let w = Tensor::<2>::from_data([[1., 0.], [2., 1.], [0., 1.], [1., 1.], [0., 2.], [3., 0.]], &device);
//! let target = w.clone().flip([0]);
//! let sizes = factorize(6, 2)?; // 2 and 3
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
//! assert!(stiefel::defect(&factors[1])? < 2e-6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod backend;
mod batch;
pub mod block;
pub mod cache;
pub mod cayley;
pub mod eigen;
mod error;
pub mod factorize;

mod host;
mod householder;
pub mod kron;
pub mod kronecker;
mod modes;
pub mod optim;
pub mod polar;
mod products;
pub mod qr;
pub mod rotation;
mod stack;
mod stacks;
pub mod stiefel;
pub mod svd;

pub use backend::{Function, with_gradient};
pub use block::{block_left, block_right};
pub use cache::SvdCache;
pub use cayley::{cayley, cayley_neumann, skew};
pub use eigen::SymmetricEigen;
pub use error::LinalgError;
pub use factorize::{factorize, factorize_within};
pub use kron::{KronGradient, KronRows, kron, kron_left, kron_right};
pub use kronecker::Kronecker;
pub use optim::{StiefelAdam, StiefelAdamConfig};
pub use polar::Polar;
pub use qr::{Lq, Qr};
pub use rotation::{rotation_exp, rotation_log, rotation_power};
pub use svd::{SIGN_RULES, Svd};

// `#[derive(RecordState)]` expands to `crate::…` paths.
use burn::optim::{RecordState, StateSink, StateSource};
