//! The public operations on tensors, each with its node on the autodiff tape.
//!
//! A file holds one operation: the function, the tape node with the gradient, and the formulas of both.
//! `linear/` holds those of linear layers.
//!
//! A gradient is defined here once for all backends, in terms of [`Kernels`](crate::Kernels) and
//! [`KernelGradients`](crate::KernelGradients).

pub(crate) mod attention;
pub(crate) mod bias_residual;
pub(crate) mod concat_channels;
pub(crate) mod conv;
pub(crate) mod geglu;
pub(crate) mod kronecker;
pub(crate) mod linear;
pub(crate) mod matmul;
pub(crate) mod multi_tensor;
pub(crate) mod norm;
pub(crate) mod parallel_attention;
pub(crate) mod polar;
pub(crate) mod rms_norm_rotary;
pub(crate) mod scale_columns;
pub(crate) mod swiglu;
pub(crate) mod timesteps;
pub(crate) mod upsample;
