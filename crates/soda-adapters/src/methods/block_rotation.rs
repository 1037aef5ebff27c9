//! Block-diagonal rotations from packed skew-symmetric matrices, for OFT and BOFT.
//!
//! The parameters of a block of size `n` are the `n(n-1)/2` entries above the diagonal of a skew-symmetric
//! `Q`, row by row, as PEFT packs them. A Cayley transform makes the rotation:
//!
//! | form | rotation | used by |
//! |---|---|---|
//! | exact | `(I - Q)(I + Q)⁻¹` | PEFT with `use_cayley_neumann=False`, BOFT |
//! | Neumann | `(I + Q)(I + Q + … + Q^p)`, `p = max(terms - 2, 2)` | PEFT by default |
//!
//! The Neumann form is orthogonal for small `Q` only. The two forms rotate in opposite directions. This is
//! the convention of PEFT, and adapter files hold `Q`.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use soda_kernels::matmul;
use soda_linalg::{
    AutogradFunction, LinalgError, Polar, apply_autograd, block_diag_left, block_diag_right,
    cayley, rotation_power,
};

use crate::rotation_merge::{MergeRule, merge_rotations};

/// The transform from a skew-symmetric block to a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "form", deny_unknown_fields)]
pub enum CayleyForm {
    /// `(I - Q)(I + Q)⁻¹`.
    Exact,
    /// A truncated Neumann series of the inverse.
    Neumann {
        /// PEFT's `num_cayley_neumann_terms`, at least 3. PEFT computes the same series for 3 and 4.
        terms: usize,
    },
}

/// A block-diagonal rotation `[width, width]`.
#[derive(Module, Debug)]
pub struct BlockRotation {
    /// The packed entries of `Q`, `[blocks, n(n-1)/2]`, or `[1, n(n-1)/2]` if all blocks share them.
    /// Trainable.
    pub skew: Param<Tensor<2>>,
    /// `n`.
    block_size: usize,
    /// Number of repetitions of a shared block; 1 if each block has its own parameters.
    copies: usize,
    #[module(skip)]
    form: CayleyForm,
    #[module(skip)]
    unpack: Unpack,
    /// COFT's bound of the norm of a block's `Q`; infinite without one.
    bound: f64,
    /// The blocks `[blocks, n, n]` of a rotation at a strength or of a merged one, which replace the
    /// parameters.
    fixed: Option<Tensor<3>>,
}

impl BlockRotation {
    /// Makes the identity of `width` in blocks of `size`, a divisor of `width`, with the float type and
    /// device of `like`.
    ///
    /// `share` gives all blocks one set of parameters; `constraint` is COFT's `ε`.
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
            block_size: size,
            copies,
            form,
            unpack: Unpack::new(size, &like.device()),
            bound: constraint.map_or(f64::INFINITY, |eps| eps / (trained as f64).sqrt()),
            fixed: None,
        }
    }

    /// Computes `R w` for `w` `[width, cols]`.
    pub(crate) fn left(&self, w: Tensor<2>) -> Tensor<2> {
        block_diag_left(self.blocks(), w)
    }

    /// Computes `w R` for `w` `[rows, width]`.
    pub(crate) fn right(&self, w: Tensor<2>) -> Tensor<2> {
        block_diag_right(w, self.blocks())
    }

    /// The size `n` of a block.
    pub(crate) fn block_size(&self) -> usize {
        self.block_size
    }

    /// Computes all blocks, `[blocks, n, n]`.
    pub fn blocks(&self) -> Tensor<3> {
        if let Some(fixed) = &self.fixed {
            return fixed.clone();
        }
        let q = self.bounded(apply_autograd(&self.unpack, self.skew.val().unsqueeze_dim(2), &[]));
        let blocks = match self.form {
            CayleyForm::Exact => cayley(q.neg()),
            CayleyForm::Neumann { terms } => neumann(q, terms),
        };
        blocks.repeat_dim(0, self.copies)
    }

    /// Projects `Q` to COFT's bound. The gradient is taken at the projected point, because PEFT projects the
    /// parameter before each step.
    fn bounded(&self, q: Tensor<3>) -> Tensor<3> {
        if self.bound.is_infinite() {
            return q;
        }
        let constant = q.clone().detach();
        let norm = constant.clone().square().sum_dim(1).sum_dim(2).sqrt();
        // At norm 0 the quotient is infinite, and the clamp makes it 1.
        let scale = norm.recip().mul_scalar(self.bound).clamp_max(1.0);
        q + (constant.clone() * scale - constant)
    }

    /// Computes `Rᵗ`, block by block.
    ///
    /// A truncated Neumann series is not exactly orthogonal. With `P` the nearest rotation, the result is
    /// `Pᵗ + t (R - P)`, which is `R` at strength 1.
    pub(crate) fn power(self, t: f64) -> Result<Self, LinalgError> {
        let power = |block: Tensor<3>| {
            let block = block.squeeze_dim::<2>(0);
            let nearest = Polar::new(&block)?.q;
            let residual = (block - nearest.clone()).mul_scalar(t);
            Ok((rotation_power(&nearest, t)? + residual).unsqueeze_dim(0))
        };
        let powers = self.blocks().split(1, 0).into_iter().map(power);
        let powers = powers.collect::<Result<Vec<Tensor<3>>, LinalgError>>()?;
        Ok(Self { fixed: Some(Tensor::cat(powers, 0)), ..self })
    }

    /// Merges weighted rotations block by block; `None` if their sizes differ.
    pub(crate) fn merge(
        weighted: &[(f64, Self)],
        rule: MergeRule,
    ) -> Result<Option<Self>, LinalgError> {
        let Some((_, first)) = weighted.first() else { return Ok(None) };
        let blocks: Vec<_> =
            weighted.iter().map(|(weight, rotation)| (*weight, rotation.blocks())).collect();
        let [count, n, _] = first.blocks().dims();
        if blocks.iter().any(|(_, blocks)| blocks.dims() != [count, n, n]) {
            return Ok(None);
        }
        let block = |index: usize| {
            let nearest = |(weight, blocks): &(f64, Tensor<3>)| {
                let block = blocks.clone().narrow(0, index, 1).squeeze_dim::<2>(0);
                Ok((*weight, Polar::new(&block)?.q))
            };
            let weighted = blocks.iter().map(nearest).collect::<Result<Vec<_>, LinalgError>>()?;
            Ok(merge_rotations(&weighted, rule)?.unsqueeze_dim(0))
        };
        let blocks = (0..count).map(block).collect::<Result<Vec<Tensor<3>>, LinalgError>>()?;
        Ok(Some(Self { fixed: Some(Tensor::cat(blocks, 0)), ..first.clone() }))
    }
}

/// Computes `(I + Q)(I + Q + … + Q^p)` for `q` `[blocks, n, n]`.
fn neumann(q: Tensor<3>, terms: usize) -> Tensor<3> {
    let [_, n, _] = q.dims();
    let identity = Tensor::<2>::eye(n, &q.device()).cast(q.dtype()).unsqueeze_dim::<3>(0);
    let mut series = q.zeros_like() + identity.clone();
    for _ in 0..terms.saturating_sub(2).max(2) {
        series = identity.clone() + matmul(q.clone(), series);
    }
    matmul(q + identity, series)
}

/// Unpacks upper triangles `[b, n(n-1)/2, 1]` to skew-symmetric matrices `[b, n, n]`.
///
/// Forward and backward passes are gathers with indices that are uploaded once.
#[derive(Clone, Debug)]
struct Unpack {
    size: usize,
    /// Index of each entry of `Q` in `[packed, -packed, 0]`, `[n n]`.
    sources: Tensor<1, Int>,
    /// Indices in `Q` of each packed entry above the diagonal and below it, `[n(n-1)/2]`.
    targets: [Tensor<1, Int>; 2],
}

impl Unpack {
    fn new(n: usize, device: &Device) -> Self {
        let entries = n * n.saturating_sub(1) / 2;
        let mut sources = vec![2 * entries; n * n];
        let (mut above, mut below) = (Vec::with_capacity(entries), Vec::with_capacity(entries));
        for row in 0..n {
            for col in row + 1..n {
                let packed = above.len();
                sources[row * n + col] = packed;
                sources[col * n + row] = entries + packed;
                above.push(row * n + col);
                below.push(col * n + row);
            }
        }
        let upload = |indices: Vec<usize>| {
            let indices: Vec<_> = indices.into_iter().map(|index| index as i64).collect();
            let count = indices.len();
            Tensor::from_data(TensorData::new(indices, [count]), device)
        };
        Self { size: n, sources: upload(sources), targets: [upload(above), upload(below)] }
    }
}

impl AutogradFunction for Unpack {
    fn forward(&self, x: Tensor<3>, _: &[Tensor<1>]) -> Tensor<3> {
        let [blocks, _, _] = x.dims();
        let packed = x.flatten::<2>(1, 2);
        let zero = Tensor::zeros([blocks, 1], (&packed.device(), packed.dtype()));
        let sources = self.sources.clone().to_device(&packed.device());
        Tensor::cat(vec![packed.clone(), packed.neg(), zero], 1)
            .select(1, sources)
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
        let gather = |indices: &Tensor<1, Int>| {
            grad.clone().select(1, indices.clone().to_device(&grad.device()))
        };
        let [above, below] = self.targets.each_ref().map(gather);
        (Some((above - below).unsqueeze_dim(2)), Vec::new())
    }
}

/// Returns the divisor of `width` nearest to `wanted`, the smaller of two at one distance: PEFT's rule for
/// block sizes.
pub(crate) fn nearest_divisor(width: usize, wanted: usize) -> usize {
    let divides = |size: &usize| width.is_multiple_of(*size);
    let lower = (1..=wanted.min(width)).rev().find(divides).unwrap_or(1);
    let higher = (wanted..=width).find(divides).unwrap_or(width);
    if wanted.abs_diff(lower) <= wanted.abs_diff(higher) { lower } else { higher }
}
