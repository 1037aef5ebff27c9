//! Block-diagonal rotations from packed skew matrices: what OFT and BOFT are made of.
//!
//! A block of size `n` is trained as the `n(n-1)/2` entries above the diagonal of a skew `Q`, row by row
//! (PEFT's packing), and turned into a rotation by the Cayley transform:
//!
//! | form | rotation | as |
//! |---|---|---|
//! | exact | `(I - Q)(I + Q)⁻¹` | PEFT with `use_cayley_neumann=False`, BOFT |
//! | Neumann | `(I + Q)(I + Q + … + Q^p)`, `p = max(terms - 2, 2)` | PEFT's default; orthogonal for small `Q` only |
//!
//! The two turn in opposite directions, which is PEFT's convention and kept, since files hold `Q`.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use soda_kernels::matmul;
use soda_linalg::{LinalgError, Polar, block_left, block_right, cayley, rotation_power};

use crate::merge::{Combine, rotations};

/// How a skew block becomes a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "form", deny_unknown_fields)]
pub enum CayleyForm {
    /// By the inverse.
    Exact,
    /// By a truncated Neumann series of it.
    Neumann {
        /// PEFT's `num_cayley_neumann_terms`; at least 3, which there gives the same as 4.
        terms: usize,
    },
}

/// A block-diagonal rotation of one width.
#[derive(Module, Debug)]
pub struct BlockRotation {
    /// `[blocks, n(n-1)/2]`, or `[1, ...]` where all blocks share one.
    pub skew: Param<Tensor<2>>,
    /// `n`.
    size: usize,
    /// How often a shared block is repeated; 1 where each has its own.
    copies: usize,
    #[module(skip)]
    form: CayleyForm,
    /// COFT's bound on the norm of a block's `Q`, or infinity.
    bound: f64,
    /// The blocks `[blocks, n, n]` themselves, of a rotation at a strength.
    fixed: Option<Tensor<3>>,
}

impl BlockRotation {
    /// The identity on `width` entries in blocks of `size`, which divides it; of `like`'s type and device.
    pub(crate) fn identity(
        width: usize,
        size: usize,
        share: bool,
        form: CayleyForm,
        constraint: Option<f64>,
        like: &Tensor<2>,
    ) -> Self {
        let blocks = width / size;
        let (trained, copies) = if share { (1, blocks) } else { (blocks, 1) };
        let shape = [trained, size * (size - 1) / 2];
        Self {
            skew: Param::from_tensor(Tensor::zeros(shape, (&like.device(), like.dtype()))),
            size,
            copies,
            form,
            bound: constraint.map_or(f64::INFINITY, |eps| eps / (trained as f64).sqrt()),
            fixed: None,
        }
    }

    /// `R w` for `w` `[width, cols]`.
    pub(crate) fn left(&self, w: Tensor<2>) -> Tensor<2> {
        block_left(self.blocks(), w)
    }

    /// `w R` for `w` `[rows, width]`.
    pub(crate) fn right(&self, w: Tensor<2>) -> Tensor<2> {
        block_right(w, self.blocks())
    }

    /// `n`.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// All blocks, `[blocks, n, n]`.
    pub fn blocks(&self) -> Tensor<3> {
        if let Some(fixed) = &self.fixed {
            return fixed.clone();
        }
        let q = self.bounded(unpack(self.skew.val(), self.size));
        let blocks = match self.form {
            CayleyForm::Exact => cayley(q.neg()),
            CayleyForm::Neumann { terms } => neumann(q, terms),
        };
        blocks.repeat_dim(0, self.copies)
    }

    /// COFT: `Q` within its bound. The gradient is that at the projected point, as if the parameter had
    /// been projected before the step (which is what PEFT does).
    fn bounded(&self, q: Tensor<3>) -> Tensor<3> {
        if self.bound.is_infinite() {
            return q;
        }
        let constant = q.clone().detach();
        let norm = constant.clone().square().sum_dim(1).sum_dim(2).sqrt();
        // At norm 0 the quotient is infinite and clamped like every other within the bound.
        let scale = norm.recip().mul_scalar(self.bound).clamp_max(1.0);
        q + (constant.clone() * scale - constant)
    }

    /// `Rᵗ`, block by block. What the Neumann series leaves of orthogonality goes in proportion, so that
    /// strength 1 is the block itself: `Pᵗ + t (R - P)`, `P` the nearest rotation.
    pub(crate) fn power(self, t: f64) -> Result<Self, LinalgError> {
        let power = |block: Tensor<3>| {
            let block = block.squeeze_dim::<2>(0);
            let nearest = Polar::new(&block)?.q;
            let rest = (block - nearest.clone()).mul_scalar(t);
            Ok((rotation_power(&nearest, t)? + rest).unsqueeze_dim(0))
        };
        let powers = self.blocks().split(1, 0).into_iter().map(power);
        let powers = powers.collect::<Result<Vec<Tensor<3>>, LinalgError>>()?;
        Ok(Self { fixed: Some(Tensor::cat(powers, 0)), ..self })
    }

    /// One rotation of several, block by block; `None` where their sizes differ.
    pub(crate) fn combine(
        parts: &[(f64, Self)],
        how: Combine,
    ) -> Result<Option<Self>, LinalgError> {
        let Some((_, first)) = parts.first() else { return Ok(None) };
        let blocks: Vec<_> = parts.iter().map(|(weight, part)| (*weight, part.blocks())).collect();
        let [count, n, _] = first.blocks().dims();
        if blocks.iter().any(|(_, blocks)| blocks.dims() != [count, n, n]) {
            return Ok(None);
        }
        let block = |index: usize| {
            let nearest = |(weight, blocks): &(f64, Tensor<3>)| {
                let block = blocks.clone().narrow(0, index, 1).squeeze_dim::<2>(0);
                Ok((*weight, Polar::new(&block)?.q))
            };
            let parts = blocks.iter().map(nearest).collect::<Result<Vec<_>, LinalgError>>()?;
            Ok(rotations(&parts, how)?.unsqueeze_dim(0))
        };
        let blocks = (0..count).map(block).collect::<Result<Vec<Tensor<3>>, LinalgError>>()?;
        Ok(Some(Self { fixed: Some(Tensor::cat(blocks, 0)), ..first.clone() }))
    }
}

/// `(I + Q)(I + Q + … + Q^p)`
fn neumann(q: Tensor<3>, terms: usize) -> Tensor<3> {
    let [_, n, _] = q.dims();
    let identity = Tensor::<2>::eye(n, &q.device()).cast(q.dtype()).unsqueeze_dim::<3>(0);
    let mut series = q.zeros_like() + identity.clone();
    for _ in 0..terms.saturating_sub(2).max(2) {
        series = identity.clone() + matmul(q.clone(), series);
    }
    matmul(q + identity, series)
}

/// `[b, n(n-1)/2]`, the upper triangles row by row, as skew `[b, n, n]`.
fn unpack(packed: Tensor<2>, n: usize) -> Tensor<3> {
    let [blocks, entries] = packed.dims();
    // Every entry of `Q` is an entry of `[packed, -packed, 0]`.
    let mut index = vec![2 * entries as i64; n * n];
    let mut next = 0;
    for row in 0..n {
        for col in row + 1..n {
            index[row * n + col] = next;
            index[col * n + row] = entries as i64 + next;
            next += 1;
        }
    }
    let index = Tensor::<1, Int>::from_data(TensorData::new(index, [n * n]), &packed.device());
    let zero = Tensor::zeros([blocks, 1], (&packed.device(), packed.dtype()));
    Tensor::cat(vec![packed.clone(), packed.neg(), zero], 1)
        .select(1, index)
        .reshape([blocks, n, n])
}

/// The divisor of `width` nearest to `wanted`, the lower of two: PEFT's rule for block sizes.
pub(crate) fn nearest_divisor(width: usize, wanted: usize) -> usize {
    let divides = |size: &usize| width.is_multiple_of(*size);
    let lower = (1..=wanted.min(width)).rev().find(divides).unwrap_or(1);
    let higher = (wanted..=width).find(divides).unwrap_or(width);
    if wanted.abs_diff(lower) <= wanted.abs_diff(higher) { lower } else { higher }
}
