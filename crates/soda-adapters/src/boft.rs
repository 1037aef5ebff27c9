//! BOFT (Liu et al., ICLR 2024, arXiv 2311.06243): a product of block-diagonal rotations, each between
//! permutations of a butterfly, and a trained scale of each output.
//!
//! `Wᵀ = B_m ⋯ B_1 W0ᵀ diag(s)`, `B_i = P_i diag(R_1, R_2, …) P_iᵀ`. A level mixes what the one before
//! could not: after `m` levels an input reaches `2^(m-1)` blocks. Permutations are PEFT's.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use soda_kernels::matmul;
use soda_linalg::LinalgError;

use crate::blocks::{BlockRotation, CayleyForm, nearest_divisor};
use crate::cost::Cost;
use crate::error::AdapterError;
use crate::fold::{Weight, compute_dtype};
use crate::method::{Adapter, Method};

/// Settings of BOFT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BoftConfig {
    /// Size of the blocks; a width that it does not divide takes its nearest divisor.
    pub block_size: usize,
    /// Levels of the butterfly; a width whose blocks cannot be paired as often gets fewer.
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

    fn adapter(&self, _path: &str, weight: &Weight) -> Result<Boft, AdapterError> {
        let refuse = |reason| Err(AdapterError::Config { method: NAME, reason });
        if self.block_size < 2 {
            return refuse("a block turns at least 2 entries");
        }
        if self.levels == 0 {
            return refuse("a butterfly has at least one level");
        }
        let w = weight.matrix.clone().cast(compute_dtype(weight.matrix.dtype()));
        let [input, output] = w.dims();
        let size = nearest_divisor(input, self.block_size);
        // Level i pairs halves of blocks 2^i apart, so it needs even blocks and that many of them.
        let most = if size % 2 == 1 { 0 } else { (input / size).trailing_zeros() as usize };
        let level = |level: usize| Level {
            rotation: BlockRotation::identity(input, size, false, CayleyForm::Exact, None, &w),
            order: (level > 0).then(|| Order::new(input, size, level, &w)),
        };
        let scale = Tensor::ones([output], (&w.device(), w.dtype()));
        Ok(Boft {
            levels: (0..self.levels.min(most + 1)).map(level).collect(),
            scale: Param::from_tensor(scale),
        })
    }
}

/// `B_m ⋯ B_1 w diag(s)` on the stored weight `[in, out]`.
#[derive(Module, Debug)]
pub struct Boft {
    /// `B_1, …, B_m`.
    pub levels: Vec<Level>,
    /// `s`, `[out]`.
    pub scale: Param<Tensor<1>>,
}

/// `P diag(R_1, …) Pᵀ`
#[derive(Module, Debug)]
pub struct Level {
    /// The blocks.
    pub rotation: BlockRotation,
    /// `P`; absent where it is the identity.
    order: Option<Order>,
}

/// A permutation of rows and its inverse.
#[derive(Module, Debug)]
struct Order {
    forward: Tensor<1, Int>,
    inverse: Tensor<1, Int>,
}

impl Order {
    /// Of the level (from 0): groups of `2^level` blocks, in halves of blocks, the even halves first.
    fn new(width: usize, size: usize, level: usize, like: &Tensor<2>) -> Self {
        let (half, halves) = (size / 2, 2 << level);
        let order = (0..width).map(|at| {
            let group = at - at % (half * halves);
            let (place, within) = ((at - group) / half, at % half);
            let from = if place < halves / 2 { 2 * place } else { 2 * place - halves + 1 };
            (group + from * half + within) as i64
        });
        let forward: Vec<i64> = order.collect();
        let mut inverse = vec![0; width];
        for (to, from) in forward.iter().enumerate() {
            inverse[*from as usize] = to as i64;
        }
        let upload = |index| Tensor::from_data(TensorData::new(index, [width]), &like.device());
        Self { forward: upload(forward), inverse: upload(inverse) }
    }
}

impl Adapter for Boft {
    fn apply(&self, mut w: Tensor<2>) -> Tensor<2> {
        for Level { rotation, order } in &self.levels {
            w = match order {
                None => rotation.left(w),
                Some(order) => {
                    let sorted = w.select(0, order.inverse.clone());
                    rotation.left(sorted).select(0, order.forward.clone())
                }
            };
        }
        w * self.scale.val().unsqueeze_dim(0)
    }

    fn product(&self, x: &Tensor<2>, w: &Tensor<2>) -> Option<Tensor<2>> {
        let (rows, [input, output]) = (x.dims()[0], w.dims());
        let cost = self.levels.iter().fold(Cost::layer(rows, input, output), |cost, level| {
            cost.and_rotation(rows, input, output, level.rotation.size())
        });
        if !cost.input_side(x) {
            return None;
        }
        let mut turned = x.clone().cast(self.scale.val().dtype());
        for Level { rotation, order } in self.levels.iter().rev() {
            turned = match order {
                None => rotation.right(turned),
                // A permutation from the right is its inverse on the columns.
                Some(order) => {
                    let sorted = turned.select(1, order.inverse.clone());
                    rotation.right(sorted).select(1, order.forward.clone())
                }
            };
        }
        let y = matmul(turned.cast(w.dtype()), w.clone());
        let scale = self.scale.val().unsqueeze_dim(0);
        Some((y.cast(scale.dtype()) * scale).cast(w.dtype()))
    }

    fn at_strength(self, t: f64) -> Result<Self, LinalgError> {
        let turn = |level: Level| Ok(Level { rotation: level.rotation.power(t)?, ..level });
        Ok(Self {
            levels: self.levels.into_iter().map(turn).collect::<Result<_, LinalgError>>()?,
            scale: self.scale.map(|s| (s - 1.0).mul_scalar(t) + 1.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_peft() {
        // BOFTLayer.block_butterfly_perm(16, b=4 / 2, r=2, 1) of PEFT 0.21.
        let order = Order::new(16, 4, 1, &Tensor::zeros([1, 1], &Default::default()));
        let expected = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
        assert_eq!(order.forward.into_data().iter::<i64>().collect::<Vec<_>>(), expected);
    }
}
