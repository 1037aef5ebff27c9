//! The change of a weight by rotations of subspaces and a truncated spectrum, as one low-rank product.
//!
//! With `M = Rr - I` and `L Δ Bᵀ` for the shift of the spectrum (`L = V_k`, `B = U_k`):
//!
//! ```text
//! R (W0 + L Δ Bᵀ) R'  =  W0 + a b
//!
//! a  = [Q  L  W0 Q']                      [in, r + k + r'], frozen
//! b0 = [M (QᵀW0 + QᵀL Δ Bᵀ) ; Δ Bᵀ]       [r + k, out]
//! b  = [b0 + b0 Q' M' Q'ᵀ ; M' Q'ᵀ]       [r + k + r', out]
//! ```
//!
//! So a layer costs what LoRA of that rank costs, and the change is a LoRA without any loss. `W0` is the
//! stored weight `[in, out]`. An initial adapter has `b = 0`.

use burn::module::Module;
use burn::tensor::Tensor;
use soda_kernels::{deep_copy, matmul};

use super::rotation::Rotation;
use super::truncated::TruncatedSpectrum;

/// What the low-rank form has of the base weight and the frozen directions. It follows from them and is not
/// saved.
#[derive(Module, Debug)]
pub(super) struct FrozenFactors {
    /// `a`, `[in, r + k + r']`.
    a: Tensor<2>,
    /// `QᵀW0`, `[r, out]`.
    projected: Option<Tensor<2>>,
    /// `QᵀL`, `[r, k]`.
    overlap: Option<Tensor<2>>,
}

/// The parts of a change that has the low-rank form.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) rotation: Option<&'a Rotation>,
    pub(super) output_rotation: Option<&'a Rotation>,
    pub(super) spectrum: Option<&'a TruncatedSpectrum>,
}

impl FrozenFactors {
    /// Computes the frozen factors for the base weight `w` `[in, out]`. Returns `None` for a rotation that
    /// has no subspace, and for no part at all.
    pub(super) fn new(parts: Parts<'_>, w: &Tensor<2>) -> Option<Self> {
        let basis = |rotation: Option<&Rotation>| match rotation {
            Some(rotation) => Some(Some(rotation.basis()?)),
            None => Some(None),
        };
        let (q, output_q) = (basis(parts.rotation)?, basis(parts.output_rotation)?);
        let left = parts.spectrum.map(|spectrum| spectrum.left.val());
        let projected =
            q.as_ref().map(|q| matmul(q.clone().transpose(), w.clone().cast(q.dtype())));
        let overlap = match (&q, &left) {
            (Some(q), Some(left)) => Some(matmul(q.clone().transpose(), left.clone())),
            _ => None,
        };
        let turned = output_q.map(|q| matmul(w.clone().cast(q.dtype()), q));
        let columns: Vec<_> = [q, left, turned].into_iter().flatten().collect();
        if columns.is_empty() {
            return None;
        }
        let a = if columns.len() == 1 {
            columns.into_iter().map(deep_copy).next()?
        } else {
            Tensor::cat(columns, 1)
        };
        Some(Self { a, projected, overlap })
    }

    /// `a` and `b`. `b` is on the autodiff graph if the parameters are.
    pub(super) fn factors(&self, parts: Parts<'_>) -> (Tensor<2>, Tensor<2>) {
        let shift = parts.spectrum.map(|spectrum| spectrum.scaled_right().transpose());
        let mut rows = Vec::new();
        if let (Some(rotation), Some(projected)) = (parts.rotation, &self.projected) {
            let turned = match (&self.overlap, &shift) {
                (Some(overlap), Some(shift)) => {
                    matmul(overlap.clone(), shift.clone()) + projected.clone()
                }
                _ => projected.clone(),
            };
            rows.push(matmul(rotation.deviation(), turned));
        }
        rows.extend(shift);
        if let Some(rotation) = parts.output_rotation
            && let Some(q) = rotation.basis()
        {
            let turn = matmul(rotation.deviation(), q.clone().transpose());
            rows = rows
                .into_iter()
                .map(|b| b.clone() + matmul(matmul(b, q.clone()), turn.clone()))
                .collect();
            rows.push(turn);
        }
        (self.a.clone(), Tensor::cat(rows, 0))
    }

    /// The ranks of the parts that stand beside each other in `a` and `b`.
    pub(super) fn ranks(&self, parts: Parts<'_>) -> Vec<usize> {
        let width = |x: &Tensor<2>| x.dims()[1];
        let basis = |rotation: Option<&Rotation>| rotation.and_then(Rotation::basis);
        let columns = [
            basis(parts.rotation),
            parts.spectrum.map(|spectrum| spectrum.left.val()),
            basis(parts.output_rotation),
        ];
        columns.iter().flatten().map(width).collect()
    }

    /// The rank of the change.
    pub(super) fn rank(&self) -> usize {
        self.a.dims()[1]
    }
}
