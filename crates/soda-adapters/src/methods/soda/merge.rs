//! Merging of rotations.

use burn::tensor::Tensor;
use soda_kernels::matmul;
use soda_linalg::{LinalgError, Qr};

use super::reflections::compact;
use super::rotation::{Rotation, identity};
use crate::rotation_merge::{MergeRule, merge_rotations};

impl Rotation {
    /// The product of reflections as a rotation of the space of their vectors; any other rotation as it is.
    pub(super) fn in_subspace(self) -> Result<Self, LinalgError> {
        let Some(u) = &self.reflections else { return Ok(self) };
        let (z, s) = compact(u.val());
        let q = Qr::thin(&z)?.q;
        let overlap = matmul(q.clone().transpose(), z);
        let change = matmul(matmul(overlap.clone(), s), overlap.transpose());
        let factor = identity(change.dims()[0], &change) + change;
        Ok(Self::from_factors([factor]).within(q))
    }

    /// Merges weighted rotations: factor by factor, or in the subspace that holds all their subspaces.
    /// Returns `None` for rotations of different forms or sizes.
    ///
    /// The product of two rotations with a permutation between has no such form, and scales are no rotation:
    /// the former merge along geodesics only, and the latter not at all.
    ///
    /// # Errors
    /// A rotation by half a turn has no logarithm.
    pub(crate) fn merge(
        weighted: &[(f64, Self)],
        rule: MergeRule,
    ) -> Result<Option<Self>, LinalgError> {
        let weighted: Vec<_> = weighted
            .iter()
            .map(|(weight, rotation)| Ok((*weight, rotation.clone().in_subspace()?)))
            .collect::<Result<_, LinalgError>>()?;
        let Some((_, first)) = weighted.first() else { return Ok(None) };
        let same_order = |(_, other): &(f64, Self)| other.permutation() == first.permutation();
        if weighted.iter().any(|(_, rotation)| rotation.scales.is_some())
            || !weighted.iter().all(same_order)
            || (first.permutation().is_some() && rule == MergeRule::Compose)
        {
            return Ok(None);
        }
        let bases: Vec<_> = weighted.iter().filter_map(|(_, rotation)| rotation.basis()).collect();
        if !bases.is_empty() {
            return if bases.len() == weighted.len() {
                merge_subspaces(&weighted, bases, rule)
            } else {
                Ok(None)
            };
        }
        let parts: Vec<_> = weighted.iter().map(|(_, rotation)| rotation.parts()).collect();
        let sizes = |parts: &[Tensor<2>]| parts.iter().map(Tensor::dims).collect::<Vec<_>>();
        if parts.iter().any(|other| sizes(other) != sizes(&parts[0]))
            || weighted.iter().any(|(_, other)| other.blocks.is_some() != first.blocks.is_some())
        {
            return Ok(None);
        }
        let part = |index: usize| {
            let weights = weighted.iter().map(|(weight, _)| *weight);
            let parts = weights.zip(&parts).map(|(weight, parts)| (weight, parts[index].clone()));
            merge_rotations(&parts.collect::<Vec<_>>(), rule)
        };
        let merged = (0..parts[0].len()).map(part).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(first.with_parts(&mut merged.into_iter())))
    }
}

/// Merges rotations of subspaces within the sum of the subspaces, which each of them leaves invariant.
///
/// With a basis `P` of the sum, the rotation `i` is `I + PᵀQᵢ (Rᵢ - I) QᵢᵀP` there.
fn merge_subspaces(
    weighted: &[(f64, Rotation)],
    bases: Vec<Tensor<2>>,
    rule: MergeRule,
) -> Result<Option<Rotation>, LinalgError> {
    let n = bases[0].dims()[0];
    if bases.iter().any(|q| q.dims()[0] != n) {
        return Ok(None);
    }
    let all = Tensor::cat(bases, 1);
    let p = if all.dims()[1] < n { Qr::thin(&all)?.q } else { identity(n, &all) };
    let within = |(weight, rotation): &(f64, Rotation)| {
        let q = rotation.basis()?;
        let overlap = matmul(p.clone().transpose(), q);
        let turned = matmul(overlap.clone(), rotation.deviation());
        let change = matmul(turned, overlap.transpose());
        Some((*weight, identity(p.dims()[1], &change) + change))
    };
    let rotations: Vec<_> = weighted.iter().filter_map(within).collect();
    let merged = merge_rotations(&rotations, rule)?;
    Ok(Some(Rotation::from_factors([merged]).within(p)))
}
