//! The largest settings of a method.
//!
//! Settings come from adapter files, and an adapter is made from them before its tensors are compared with
//! those of the file. So its memory must not depend on the file's word alone.

use crate::error::AdapterError;

/// Ranks that cost no memory, because a layer's sides bound them. A rank far above the sides asks LyCORIS for
/// whole matrices; imported files of LoKr have just this rank.
pub(crate) const MAX_RANK: usize = 1 << 20;
/// Ranks of matrices that have this rank on every layer.
pub(crate) const MAX_PRODUCT_RANK: usize = 4_096;
/// Sizes of the blocks of a rotation.
pub(crate) const MAX_BLOCK: usize = 4_096;
/// Sizes of a Kronecker factor, and widths that lists of sizes are for.
pub(crate) const MAX_WIDTH: usize = 1 << 20;
/// Samples of a calibration.
pub(crate) const MAX_DRAWS: usize = 100_000;
/// Terms of a series, factors of a product, levels of a butterfly.
pub(crate) const MAX_TERMS: usize = 100;

/// Refuses a setting that is above `most`.
pub(crate) fn check_most(
    method: &'static str,
    value: usize,
    most: usize,
    reason: &'static str,
) -> Result<(), AdapterError> {
    if value <= most { Ok(()) } else { Err(AdapterError::Config { method, reason }) }
}

/// Returns the scale `α/r`, or an error for a rank of 0 or an `α` that is not finite.
pub(crate) fn low_rank_scale(
    method: &'static str,
    rank: usize,
    alpha: Option<f64>,
) -> Result<f64, AdapterError> {
    let scale = alpha.unwrap_or(rank as f64) / rank as f64;
    match rank {
        0 => Err(AdapterError::Config { method, reason: "the rank is at least 1" }),
        _ if rank > MAX_RANK => {
            Err(AdapterError::Config { method, reason: "the rank is at most 1048576" })
        }
        _ if !scale.is_finite() => {
            Err(AdapterError::Config { method, reason: "alpha is a finite number" })
        }
        _ => Ok(scale),
    }
}
