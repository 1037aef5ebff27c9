//! The CUDA sources and the order in which their files are concatenated.
//!
//! NVRTC compiles one string and has no folder to search, so no file has an `#include`. This list is the only
//! place that knows which file comes after which. `tests/cuda_sources.rs` checks it against the files.

/// Concatenates files of `src/`, of which `prelude.cuh` is always the first.
macro_rules! source {
    ($($file:literal),*) => {
        concat!(include_str!("src/prelude.cuh"), $(include_str!(concat!("src/", $file))),*)
    };
}

/// A source that is compiled as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// The kernels for all three dtypes: rows, groups, elementwise operations and copies.
    Base,
    /// Attention for one dtype and one padded width `D` of a head.
    Attention,
    /// [`Source::Attention`] for compute capability 9.0.
    AttentionSm90,
    /// Kronecker products of up to four factors for one dtype.
    Kronecker,
    /// Kronecker products of three factors for one half precision and three sizes, packed in `D`.
    Kronecker3Half,
}

impl Source {
    /// The text for NVRTC.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Base => source!(
                "dtypes.cuh",
                "packs.cuh",
                "rows.cuh",
                "softmax.cu",
                "layer_norm.cu",
                "group_norm.cu",
                "geglu.cu",
                "swiglu.cu",
                "rms_norm_rotary.cu",
                "scale_columns.cu",
                "elementwise.cu",
                "dequantize.cu",
                "fp8.cu",
                "multi_tensor.cu",
                "checksum.cu",
                "tf32_split.cu"
            ),
            Self::Attention => source!("attention/attention.cuh", "attention/attention.cu"),
            Self::AttentionSm90 => {
                source!("attention/attention.cuh", "attention/attention_sm90.cu")
            }
            Self::Kronecker => source!("dtypes.cuh", "kronecker.cu"),
            Self::Kronecker3Half => source!("dtypes.cuh", "kronecker3_half.cu"),
        }
    }
}
