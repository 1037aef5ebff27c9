//! The launchers of this crate's kernels, one file an operation.
//!
//! `kernel!` names a kernel that exists for each dtype, `entry!` a kernel that exists once.
//! `tests/cuda_sources.rs` checks that the sources define every kernel named so, and that every kernel of the
//! sources is named so.

/// The name of a kernel for a dtype.
macro_rules! kernel {
    ($name:literal, $dtype:expr) => {
        match $dtype {
            DType::BF16 => concat!($name, "_bf16"),
            DType::F16 => concat!($name, "_f16"),
            _ => concat!($name, "_f32"),
        }
    };
}

/// The name of a kernel that exists once.
macro_rules! entry {
    ($name:literal) => {
        $name
    };
}

pub(super) mod attention;
pub(super) mod bias_residual;
pub(super) mod cast_pair;
pub(super) mod checksum;
pub(super) mod concat_channels;
pub(super) mod dequantize;
pub(super) mod fp8;
pub(super) mod geglu;
pub(super) mod group_norm;
pub(super) mod kronecker;
pub(super) mod layer_norm;
pub(super) mod multi_tensor;
pub(super) mod polar;
mod rows;
pub(super) mod scale_columns;
mod sizes;
pub(super) mod softmax;
pub(super) mod swiglu;
pub(super) mod upsample;
