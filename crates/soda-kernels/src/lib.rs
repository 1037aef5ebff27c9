//! The operations that dominate the fine-tuning of a diffusion network, each with a gradient of its own.
//!
//! burn has all of these operations. Fine-tuning needs less of them than training from scratch does. The
//! versions here take less memory and time, above all for gradients:
//!
//! | operation | burn 0.22 | this crate |
//! |---|---|---|
//! | [`conv2d`] | saves its input for a weight gradient | saves a size: the weight is frozen |
//! | [`attention`] | saves all attention weights, `heads · n · m` numbers | computes large ones again |
//! | [`group_norm`], [`layer_norm`], [`geglu`] | a dozen operations each | one operation, its input saved |
//! | [`swiglu`], [`rms_norm_rotary`], [`modulated_layer_norm`] | a dozen operations each | the same |
//! | [`parallel_attention`] | gradients as large as its input for each part | one gradient |
//! | [`upsample_nearest`] | a gradient that some drivers shift | sums of 2 x 2 pixels |
//! | [`concat_channels`] | results that convolutions copy again | one copy each way, channels last |
//! | [`scale_columns`] | one operation a step | one operation; its gradient is a sum over rows |
//! | [`matmul`] | CubeCL kernels, tuned for each shape | cuBLAS on CUDA if the machine has it |
//!
//! Layers with an epilogue or an adapter are one operation as well:
//!
//! - [`linear_residual`] and [`conv2d_residual`] add a bias and a residual in one pass.
//! - [`linear_deferred`] forms its weight at the moment of use. [`offer_product`] replaces the product with
//!   that weight, so that an adapter on few rows forms no effective weight.
//! - [`linear_low_rank`] is a LoRA layer; [`add_low_rank`] adds its update to a product.
//! - [`StoredWeight`] is a frozen weight in 4 or 8 bits, and its product.
//! - [`KroneckerProduct`] multiplies rows with a Kronecker product of small factors.
//! - [`PolarIteration`] approaches the polar factor of a matrix by products.
//!
//! # Modules
//!
//! | module | contents |
//! |---|---|
//! | `ops/` | the public operations, one file each, with tape node and gradient |
//! | `backend` | the traits [`Kernels`] (forward) and [`KernelGradients`] (called by the tape) |
//! | `backend_steps` | the operations of these traits that fallbacks are composed of |
//! | `autodiff` | [`Kernels`] for burn's autodiff backend |
//! | `quantize/` | number formats of frozen weights, and their codes on the host |
//! | `host_matrix`, `host_transpose` | matrices in host memory |
//! | `stored_weight` | weights that are quantized or in host memory, in the place of a module's parameters |
//! | `fallback/` | both traits in burn's own operations: the defaults |
//! | `cpu/` | both traits for the CPU, in float32 on slices; feature `cpu` |
//! | `cuda/` | both traits for CUDA: cuBLAS, cuBLASLt, cuDNN and kernels of this crate; feature `cuda` |
//! | `cuda_absent` | the stand-in for `cuda/` in builds without the feature |
//! | `device/` | memory, graph capture, copies ahead, sums of devices, vendor libraries, kernel cache |
//!
//! # Invariants
//!
//! - There are two ways to a device. `Kernels` and `KernelGradients` are the one for differentiable
//!   operations. The other is `cuda/tensors.rs`: functions on tensors off the tape, for which other devices
//!   have no kernel. Code outside `cuda/` reaches CUDA only through the functions that `cuda_absent` declares
//!   as well.
//! - `unsafe` occurs in `cuda/` only.
//! - Features only add. `cfg(feature = "cuda")` occurs in this file only.
//! - The same operation gives the same bits in every run: kernels add in a fixed order and use no atomics.

mod autodiff;
#[cfg_attr(
    not(any(feature = "cpu", feature = "cube")),
    allow(unused_variables, reason = "a build without backends dispatches to none")
)]
mod backend;
mod backend_steps;
#[cfg(feature = "cpu")]
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "cuda_absent.rs"]
mod cuda;
mod device;
mod fallback;
mod host_matrix;
mod host_transpose;
mod ops;
mod quantize;
mod stored_checksums;
mod stored_weight;

pub use backend::{KernelGradients, Kernels};
#[cfg(feature = "cuda")]
pub use cuda::missing_for_cuda;
pub use device::checksum::checksum;
pub use device::collective::{Collective, CollectiveError, CollectiveId};
pub use device::copies_ahead::with_copies_ahead;
pub use device::graph::CapturedGraph;
#[cfg(feature = "persistence")]
pub use device::kernel_cache::enable_kernel_cache;
pub use device::lazy_graph::LazyGraph;
pub use device::memory::{
    MemoryUsage, deep_copy, free_memory, memory_usage, persistent, release_unused,
};
pub use device::memory_format::{MemoryFormat, to_preferred_memory_format, with_stride_order};
pub use device::vendor_blas::{has_fp8_products, has_vendor_blas};
pub use fallback::attention::AttentionGradient;
pub use fallback::parallel_attention::ParallelOptions;
pub use host_matrix::{HostMatrix, HostNumbers};
pub use host_transpose::transposed;
pub use ops::attention::attention;
pub use ops::concat_channels::concat_channels;
pub use ops::conv::{conv2d, conv2d_residual};
pub use ops::geglu::{geglu, geglu_with_bias};
pub use ops::kronecker::{KroneckerGradient, KroneckerProduct};
pub use ops::linear::deferred::{linear_deferred, linear_residual, offer_product};
pub use ops::linear::linear;
pub use ops::linear::low_rank::{add_low_rank, linear_low_rank};
pub use ops::matmul::{addmm, matmul};
pub use ops::multi_tensor::{multi_tensor_cat, multi_tensor_split};
pub use ops::norm::{group_norm, layer_norm, modulated_layer_norm};
pub use ops::parallel_attention::parallel_attention;
pub use ops::polar::PolarIteration;
pub use ops::rms_norm_rotary::{RotaryEmbedding, rms_norm_rotary};
pub use ops::scale_columns::{scale_columns, scale_columns_gradient};
pub use ops::swiglu::swiglu;
pub use ops::timesteps::{current_timesteps, with_timesteps};
pub use ops::upsample::upsample_nearest;
pub use quantize::{ActivationFormat, QuantFormat, QuantLayout, QuantizedMatrix};
pub use stored_checksums::stored_checksums;
pub use stored_weight::{StoredFormat, StoredWeight, stored_weights, take_stored, with_stored};
