//! The rules by which adapters of one form are merged on the manifold of rotations.
//!
//! | rule | rotations | everything else | function |
//! |---|---|---|---|
//! | residual | `W0 + Σ λᵢ (Wᵢ - W0)`, not a rotation | the same sum | [`attach_all`](crate::attach_all) |
//! | geodesic | `exp(Σ λᵢ log Rᵢ)`, factor by factor | `Σ λᵢ δᵢ` | [`MergeRule::Geodesic`] |
//! | compose | `R₁^λ₁ R₂^λ₂ ⋯` | `Σ λᵢ δᵢ` | [`MergeRule::Compose`] |
//!
//! The mean of rotations in different directions has a smaller angle than each of them, because their
//! logarithms cancel in part. OrthoFuse (arXiv 2604.05183) finds the spectrum of a merged rotation flattened
//! and restores it. Here `L ← L (Σ |λᵢ| ‖Lᵢ‖ / ‖L‖)^restore` for `L = Σ λᵢ Lᵢ`.

use burn::tensor::Tensor;
use soda_kernels::matmul;
use soda_linalg::{LinalgError, rotation_exp, rotation_log, rotation_power};

/// How [`Plan::merge`](crate::Plan::merge) merges adapters of one form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MergeRule {
    /// The weighted mean along geodesics.
    Geodesic {
        /// How much of the cancelled angle is restored: from 0 (the plain mean) to 1 (the sum of the angles).
        restore: f64,
    },
    /// The product of the rotations. The last one of the list is applied to the weight first.
    Compose,
}

/// Merges weighted rotations `[n, n]`, at least one.
pub(crate) fn merge_rotations(
    weighted: &[(f64, Tensor<2>)],
    rule: MergeRule,
) -> Result<Tensor<2>, LinalgError> {
    let restore = match rule {
        MergeRule::Geodesic { restore } => restore,
        MergeRule::Compose => {
            let powers =
                weighted.iter().map(|(weight, rotation)| rotation_power(rotation, *weight));
            let powers = powers.collect::<Result<Vec<_>, _>>()?;
            let product = powers.into_iter().reduce(matmul);
            return product.ok_or(LinalgError::NoFactors);
        }
    };
    let mut sum: Option<Tensor<2>> = None;
    let mut angles = 0.0;
    for (weight, rotation) in weighted {
        let log = rotation_log(rotation)?.mul_scalar(*weight);
        angles += frobenius_norm(&log);
        sum = Some(match sum {
            Some(sum) => sum + log,
            None => log,
        });
    }
    let sum = sum.ok_or(LinalgError::NoFactors)?;
    let angle = frobenius_norm(&sum);
    // Opposite rotations cancel to zero, which has no direction to restore.
    let scale = if angle > 1e-12 * angles { (angles / angle).powf(restore) } else { 1.0 };
    rotation_exp(&sum.mul_scalar(scale))
}

/// Merges a component that an adapter may lack: `Some(None)` if none has it, `None` if they do not merge.
pub(crate) fn merge_optional<P, R>(
    weighted: Vec<(f64, P)>,
    merge: impl FnOnce(&[(f64, P)]) -> Result<Option<R>, LinalgError>,
) -> Result<Option<Option<R>>, LinalgError> {
    if weighted.is_empty() {
        return Ok(Some(None));
    }
    Ok(merge(&weighted)?.map(Some))
}

fn frobenius_norm(a: &Tensor<2>) -> f64 {
    a.clone().square().sum().sqrt().into_scalar::<f64>()
}
