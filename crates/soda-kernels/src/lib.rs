//! The operations that a fine-tune of a diffusion network spends its time in, each with its own gradient:
//! matrix products, convolutions whose weights are frozen, attention.
//!
//! burn has all of them. They are here because a fine-tune needs less of them than training does, and
//! because of what their gradients cost:
//!
//! | operation | what burn 0.22 does | what is done here |
//! |---|---|---|
//! | [`conv2d`] | keeps its input for a weight gradient that nothing asks for; a 1x1 is a convolution like any | keeps a shape; a 1x1 convolution is a matrix product |
//! | [`attention`] | keeps the scores of every layer, `heads · n · m` numbers each | keeps q, k, v and computes the scores again, some heads at a time, where they are large |
//! | [`group_norm`], [`layer_norm`], [`geglu`] | a dozen operations each, several maps kept | one, its input kept |
//! | [`concat_channels`] | a copy that has to be laid out anew, and slices as its gradient | one each way, channels last where convolutions are |
//! | [`scale_columns`] | an operation for each step of it, and a broadcast product on the tape | one; its gradient a sum over the rows |
//! | [`matmul`] | CubeCL kernels, compiled and tuned for each shape at its first use | cuBLAS on CUDA where the machine has it, burn's otherwise |
//!
//! [`linear_deferred`] is a linear layer whose weight is made as it is used, and whose maker may give the product
//! instead: how an adapter on few rows avoids a weight-sized product.
//!
//! [`CapturedGraph`] repeats a whole computation as one launch where the device can, and [`multi_tensor_cat`] and [`multi_tensor_split`] move many small
//! vectors in one. [`persistent`] puts weights where they keep no page of a pool, and [`memory_usage`] says what is taken.
//!
//! The seam is the trait [`Kernels`]: a backend that has nothing better implements it with an empty block and
//! gets burn's operations. Gradients are written once, for any backend, beside the operation that they
//! belong to. On CUDA, products and convolutions go to cuBLAS and cuDNN, which are loaded at run time
//! if the machine has them (`cuda`).

mod attention;
mod autodiff;
#[cfg_attr(
    not(any(feature = "cpu", feature = "cube")),
    allow(unused_variables, reason = "without a backend there is nothing to hand them to")
)]
mod backend;
#[cfg(feature = "persistence")]
mod cache;
mod columns;
mod conv;
mod copies;
#[cfg(feature = "cpu")]
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod geglu;
mod join;
mod laid_out;
mod low_rank;
mod matmul;
mod memory;
mod norm;
mod plus;
mod polar;
mod record;
mod through;
mod turn;

pub use attention::attention;
pub use backend::Kernels;
#[cfg(feature = "persistence")]
pub use cache::enable_kernel_cache;
pub use columns::{scale_columns, scale_columns_gradient};
pub use conv::{conv2d, conv2d_residual};
pub use copies::{multi_tensor_cat, multi_tensor_split};
pub use geglu::{geglu, geglu_with_bias};
pub use join::concat_channels;
pub use laid_out::{to_preferred_memory_format, with_stride_order};
pub use low_rank::linear_low_rank;
pub use matmul::{addmm, has_vendor_blas, linear, matmul};
pub use memory::{MemoryUsage, memory_usage, persistent};
pub use norm::{group_norm, layer_norm};
pub use polar::PolarIteration;
pub use record::{CapturedGraph, deep_copy};
pub use through::{linear_deferred, linear_residual, offer_product};
pub use turn::{KroneckerGradient, KroneckerProduct};
