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
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use soda_kernels::matmul;
use soda_linalg::{
    Function, LinalgError, Polar, block_left, block_right, cayley, rotation_power, with_gradient,
};

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
    #[module(skip)]
    unpack: Unpack,
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
            unpack: Unpack::new(size, &like.device()),
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
        let q = self.bounded(with_gradient(&self.unpack, self.skew.val().unsqueeze_dim(2), &[]));
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

/// `[b, n(n-1)/2, 1]`, the upper triangles row by row, as skew `[b, n, n]`. Both ways are gathers, at places that are told to the
/// device once.
#[derive(Clone, Debug)]
struct Unpack {
    size: usize,
    /// Where each entry of `Q` lies in `[packed, -packed, 0]`, `[n n]`.
    from: Tensor<1, Int>,
    /// Where each packed entry lies in `Q`, above the diagonal and below it, `[n(n-1)/2]`.
    to: [Tensor<1, Int>; 2],
}

impl Unpack {
    fn new(n: usize, device: &Device) -> Self {
        let entries = n * n.saturating_sub(1) / 2;
        let mut from = vec![2 * entries; n * n];
        let (mut above, mut below) = (Vec::with_capacity(entries), Vec::with_capacity(entries));
        for row in 0..n {
            for col in row + 1..n {
                let packed = above.len();
                from[row * n + col] = packed;
                from[col * n + row] = entries + packed;
                above.push(row * n + col);
                below.push(col * n + row);
            }
        }
        let told = |places: Vec<usize>| {
            let places: Vec<_> = places.into_iter().map(|place| place as i64).collect();
            let count = places.len();
            Tensor::from_data(TensorData::new(places, [count]), device)
        };
        Self { size: n, from: told(from), to: [told(above), told(below)] }
    }
}

impl Function for Unpack {
    fn forward(&self, x: Tensor<3>, _: &[Tensor<1>]) -> Tensor<3> {
        let [blocks, _, _] = x.dims();
        let packed = x.flatten::<2>(1, 2);
        let zero = Tensor::zeros([blocks, 1], (&packed.device(), packed.dtype()));
        let from = self.from.clone().to_device(&packed.device());
        Tensor::cat(vec![packed.clone(), packed.neg(), zero], 1)
            .select(1, from)
            .reshape([blocks, self.size, self.size])
    }

    fn backward(
        &self,
        _: Tensor<3>,
        _: &[Tensor<1>],
        grad: Tensor<3>,
        _: [bool; 2],
    ) -> (Option<Tensor<3>>, Vec<Tensor<1>>) {
        let grad = grad.flatten::<2>(1, 2);
        let at = |places: &Tensor<1, Int>| {
            grad.clone().select(1, places.clone().to_device(&grad.device()))
        };
        let [above, below] = self.to.each_ref().map(at);
        (Some((above - below).unsqueeze_dim(2)), Vec::new())
    }
}

/// The divisor of `width` nearest to `wanted`, the lower of two: PEFT's rule for block sizes.
pub(crate) fn nearest_divisor(width: usize, wanted: usize) -> usize {
    let divides = |size: &usize| width.is_multiple_of(*size);
    let lower = (1..=wanted.min(width)).rev().find(divides).unwrap_or(1);
    let higher = (wanted..=width).find(divides).unwrap_or(width);
    if wanted.abs_diff(lower) <= wanted.abs_diff(higher) { lower } else { higher }
}
