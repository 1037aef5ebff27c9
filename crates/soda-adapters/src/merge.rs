//! Several adapters as one, on the manifold that they live on.
//!
//! | | rotations | flat parts | |
//! |---|---|---|---|
//! | residual | | `W0 + Σ λᵢ (Wᵢ - W0)` | [`attach_all`](crate::attach_all): any methods, leaves the manifold |
//! | geodesic | `exp(Σ λᵢ log Rᵢ)`, factor by factor | `Σ λᵢ δᵢ` | [`Combine::Geodesic`] |
//! | compose | `R₁^λ₁ R₂^λ₂ ⋯` | `Σ λᵢ δᵢ` | [`Combine::Compose`] |
//!
//! A mean of rotations in different directions turns less than each of them: their logarithms cancel in
//! part. Restoring gives the turn back, after OrthoFuse (arXiv 2604.05183), which finds the spectrum of a
//! merged rotation flattened and restores it: `L ← L (Σ |λᵢ| ‖Lᵢ‖ / ‖L‖)^restore` for `L = Σ λᵢ Lᵢ`.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use soda_kernels::matmul;
use soda_linalg::{LinalgError, rotation_exp, rotation_log, rotation_power};

use crate::attach::Plan;
use crate::error::AdapterError;
use crate::method::Adapter;

/// How adapters of one form become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Combine {
    /// The weighted mean along geodesics.
    Geodesic {
        /// From 0, the plain mean, to 1, which turns as far as its parts do.
        restore: f64,
    },
    /// One rotation after the other: the last of the list acts on the weight first.
    Compose,
}

/// One plan out of several of the same method on the same base, each with a weight. A weight that only
/// some of them adapt is combined from those.
///
/// # Errors
/// Adapters that have no common form (different methods, factor sizes or bases of the spectrum, or a
/// method without one), and rotations by half a turn; named by the weight.
pub fn combine<A: Adapter>(
    plans: impl IntoIterator<Item = (Plan<A>, f64)>,
    how: Combine,
) -> Result<Plan<A>, AdapterError> {
    let mut parts: BTreeMap<String, Vec<(f64, A)>> = BTreeMap::new();
    for (plan, weight) in plans {
        for (path, adapter) in plan.adapters {
            parts.entry(path).or_default().push((weight, adapter));
        }
    }
    let one = |(path, parts)| match A::combine(parts, how) {
        Ok(Some(adapter)) => Ok((path, adapter)),
        Ok(None) => Err(AdapterError::NoCommonForm { path }),
        Err(source) => Err(AdapterError::Decomposition { path, source }),
    };
    Ok(Plan { adapters: parts.into_iter().map(one).collect::<Result<_, _>>()? })
}

/// One rotation `[n, n]` of several, at least one.
pub(crate) fn rotations(
    parts: &[(f64, Tensor<2>)],
    how: Combine,
) -> Result<Tensor<2>, LinalgError> {
    let restore = match how {
        Combine::Geodesic { restore } => restore,
        Combine::Compose => {
            let powers = parts.iter().map(|(weight, rotation)| rotation_power(rotation, *weight));
            let powers = powers.collect::<Result<Vec<_>, _>>()?;
            let product = powers.into_iter().reduce(matmul);
            return product.ok_or(LinalgError::NoFactors { n: 1, parts: 0 });
        }
    };
    let mut sum: Option<Tensor<2>> = None;
    let mut turns = 0.0;
    for (weight, rotation) in parts {
        let log = rotation_log(rotation)?.mul_scalar(*weight);
        turns += norm(&log);
        sum = Some(match sum {
            Some(sum) => sum + log,
            None => log,
        });
    }
    let sum = sum.ok_or(LinalgError::NoFactors { n: 1, parts: 0 })?;
    let turn = norm(&sum);
    // Nothing is left of opposite rotations, and no direction to restore.
    let scale = if turn > 1e-12 * turns { (turns / turn).powf(restore) } else { 1.0 };
    rotation_exp(&sum.mul_scalar(scale))
}

/// Of parts that an adapter may lack: `Some(None)` where none has it, `None` where they do not combine.
pub(crate) fn optional<P, R>(
    parts: Vec<(f64, P)>,
    combine: impl FnOnce(&[(f64, P)]) -> Result<Option<R>, LinalgError>,
) -> Result<Option<Option<R>>, LinalgError> {
    if parts.is_empty() {
        return Ok(Some(None));
    }
    Ok(combine(&parts)?.map(Some))
}

fn norm(a: &Tensor<2>) -> f64 {
    a.clone().square().sum().sqrt().into_scalar::<f64>()
}
