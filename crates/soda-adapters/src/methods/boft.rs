//! BOFT (Liu et al., ICLR 2024, arXiv 2311.06243): a butterfly of block-diagonal rotations, and a scale of
//! each output.
//!
//! `Wᵀ = B_m ⋯ B_1 W0ᵀ diag(s)` with `B_i = P_i diag(R_1, R_2, …) P_iᵀ`. Each level mixes entries that the
//! level before keeps in different blocks: after `m` levels an input reaches `2^(m-1)` blocks. The
//! permutations `P_i` are those of PEFT.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use soda_linalg::LinalgError;

use super::block_rotation::{BlockRotation, CayleyForm, nearest_divisor};
use super::bounds::{MAX_BLOCK, MAX_TERMS, check_most};
use super::cost_model::CostModel;
use super::permutation::Permutation;
use crate::adapter::Adapter;
use crate::base_weight::BaseWeight;
use crate::error::AdapterError;
use crate::method::Method;
use crate::weight::Weight;

/// Settings of BOFT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BoftConfig {
    /// Size of the blocks. A width that is not a multiple of the size uses the divisor nearest to the size.
    pub block_size: usize,
    /// Levels of the butterfly. A width whose blocks cannot be paired that often has fewer.
    pub levels: usize,
}

impl Default for BoftConfig {
    fn default() -> Self {
        Self { block_size: 8, levels: 2 }
    }
}

const NAME: &str = "boft";

impl Method for BoftConfig {
    type Adapter = Boft;

    fn name(&self) -> &'static str {
        NAME
    }

    fn init(&self, _path: &str, weight: &Weight) -> Result<Boft, AdapterError> {
        let refuse = |reason| Err(AdapterError::Config { method: NAME, reason });
        if self.block_size < 2 {
            return refuse("a block turns at least 2 entries");
        }
        if self.levels == 0 {
            return refuse("a butterfly has at least one level");
        }
        check_most(NAME, self.block_size, MAX_BLOCK, "the block size is at most 4096")?;
        check_most(NAME, self.levels, MAX_TERMS, "a butterfly has at most 100 levels")?;
        let w = weight.compute_matrix();
        let [input, output] = w.dims();
        let size = nearest_divisor(input, self.block_size);
        // Level i pairs halves of blocks at distance 2^i, which needs blocks of even size and 2^i blocks.
        let most = if size % 2 == 1 { 0 } else { (input / size).trailing_zeros() as usize };
        let level = |level: usize| Level {
            rotation: BlockRotation::identity(input, size, false, CayleyForm::Exact, None, &w),
            permutation: (level > 0).then(|| permutation(input, size, level, &w)),
        };
        let scale = Tensor::ones([output], (&w.device(), w.dtype()));
        Ok(Boft {
            levels: (0..self.levels.min(most + 1)).map(level).collect(),
            scale: Param::from_tensor(scale),
        })
    }
}

/// The adapter of one weight: `B_m ⋯ B_1 w diag(s)` on the stored weight `[in, out]`.
#[derive(Module, Debug)]
pub struct Boft {
    /// The levels `B_1, …, B_m`.
    pub levels: Vec<Level>,
    /// The scale `s` of the outputs, `[out]`.
    pub scale: Param<Tensor<1>>,
}

/// One level of the butterfly: `P diag(R_1, …) Pᵀ`.
#[derive(Module, Debug)]
pub struct Level {
    /// The block-diagonal rotation.
    pub rotation: BlockRotation,
    /// `P`; `None` for the identity.
    #[module(skip)]
    permutation: Option<Permutation>,
}

/// The permutation of a level, counted from 0: in each group of `2^level` blocks, the even half blocks come
/// first.
fn permutation(width: usize, size: usize, level: usize, like: &Tensor<2>) -> Permutation {
    Permutation::new(sources(width, size, level).collect(), like)
}

fn sources(width: usize, size: usize, level: usize) -> impl Iterator<Item = usize> {
    let (half, halves) = (size / 2, 2 << level);
    (0..width).map(move |at| {
        let group = at - at % (half * halves);
        let (half_block, within) = ((at - group) / half, at % half);
        let from =
            if half_block < halves / 2 { 2 * half_block } else { 2 * half_block - halves + 1 };
        group + from * half + within
    })
}

impl Adapter for Boft {
    fn apply(&self, mut w: Tensor<2>) -> Tensor<2> {
        for Level { rotation, permutation } in &self.levels {
            w = match permutation {
                None => rotation.left(w),
                Some(permutation) => permutation.rows(rotation.left(permutation.inverse().rows(w))),
            };
        }
        w * self.scale.val().unsqueeze_dim(0)
    }

    fn product(&self, x: &Tensor<2>, w: &BaseWeight) -> Option<Tensor<2>> {
        let (rows, [input, output]) = (x.dims()[0], w.dims());
        let cost = self.levels.iter().fold(CostModel::layer(rows, input, output), |cost, level| {
            cost.and_rotation(rows, input, output, level.rotation.block_size())
        });
        if !cost.prefers_input(x, w) {
            return None;
        }
        let mut rotated = x.clone().cast(self.scale.val().dtype());
        for Level { rotation, permutation } in self.levels.iter().rev() {
            rotated = match permutation {
                None => rotation.right(rotated),
                Some(permutation) => {
                    let sorted = permutation.inverse().columns(rotated);
                    permutation.columns(rotation.right(sorted))
                }
            };
        }
        let y = w.product(rotated.cast(w.dtype()));
        let scale = self.scale.val().unsqueeze_dim(0);
        Some((y.cast(scale.dtype()) * scale).cast(w.dtype()))
    }

    fn at_strength(self, t: f64) -> Result<Self, LinalgError> {
        let power = |level: Level| Ok(Level { rotation: level.rotation.power(t)?, ..level });
        Ok(Self {
            levels: self.levels.into_iter().map(power).collect::<Result<_, LinalgError>>()?,
            scale: self.scale.map(|s| (s - 1.0).mul_scalar(t) + 1.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutation_is_that_of_peft() {
        // BOFTLayer.block_butterfly_perm(16, b=4 / 2, r=2, 1) of PEFT 0.21.
        let expected = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
        assert_eq!(sources(16, 4, 1).collect::<Vec<_>>(), expected);
    }
}
