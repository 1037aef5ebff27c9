//! LoKr (KronA, arXiv 2212.10650; LyCORIS, arXiv 2309.14859): a Kronecker product of a small and a large
//! matrix.
//!
//! `ΔW = s W1 ⊗ W2`, where each of the two may be a low-rank product.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use soda_kernels::matmul;
use soda_linalg::{LinalgError, kron, kron_right};

use super::bounds::low_rank_scale;
use super::cost_model::CostModel;
use crate::adapter::Adapter;
use crate::base_weight::BaseWeight;
use crate::error::AdapterError;
use crate::method::Method;
use crate::seeded_init::SeededInit;
use crate::weight::Weight;

/// Settings of LoKr.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LokrConfig {
    /// `r` of the large matrix. The matrix is stored whole if its larger side is at most `2 r`.
    pub rank: usize,
    /// `α` of the scale `s = α/r`; the default is the rank, which makes `s = 1`. Unused if both matrices are
    /// whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// The smaller factor of each side of the weight; the default is the largest divisor up to the square
    /// root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<usize>,
    /// Rows and columns of the small matrix by path of the weight, where `factor` does not give them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sizes: BTreeMap<String, [usize; 2]>,
    /// Whether the small matrix is a low-rank product too, by the rule of `rank`.
    pub decompose_both: bool,
    /// Seed of the random initial values.
    pub seed: u64,
}

impl Default for LokrConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: None,
            factor: None,
            sizes: BTreeMap::new(),
            decompose_both: false,
            seed: 0,
        }
    }
}

const NAME: &str = "lokr";

impl Method for LokrConfig {
    type Adapter = Lokr;

    fn name(&self) -> &'static str {
        NAME
    }

    fn needs_its_base(&self) -> bool {
        false
    }

    fn init(&self, path: &str, weight: &Weight) -> Result<Lokr, AdapterError> {
        let scale = low_rank_scale(NAME, self.rank, self.alpha)?;
        if self.factor == Some(0) {
            return Err(AdapterError::Config { method: NAME, reason: "the factor is at least 1" });
        }
        let ([input, output], window) = (weight.dims(), weight.window());
        // As in LyCORIS, the window of a convolution belongs to the large matrix.
        let channels = input / window;
        let [(out_small, out_large), (in_small, in_large)] = match self.sizes.get(path) {
            None => [output, channels].map(|size| factorization(size, self.factor)),
            Some(small) => divided([output, channels], *small)?,
        };
        let init = SeededInit::new(self.seed, path, weight);
        let small = self.decompose_both && 2 * self.rank < out_small.max(in_small);
        let large = 2 * self.rank < out_large.max(in_large);
        let (rows, cols) = (out_large, in_large * window);
        let kaiming = |name, shape: [usize; 2]| init.kaiming(name, shape, shape[1]);
        Ok(Lokr {
            w1: Factor::new(small, [out_small, in_small], self.rank, &kaiming, |shape| {
                kaiming("w1", shape)
            }),
            w2: Factor::new(large, [rows, cols], self.rank, &kaiming, |shape| init.zeros(shape)),
            scale: if small || large { scale } else { 1.0 },
        })
    }
}

/// Factorizes `n` into `(small, large)`, as `lycoris.functional.factorization` does.
///
/// A factor that divides `n` is one of the two. Otherwise they are the divisor pair nearest to the square
/// root, with the small one at most the factor.
pub fn factorization(n: usize, factor: Option<usize>) -> (usize, usize) {
    let small = match factor {
        Some(factor) if n.is_multiple_of(factor) => factor,
        Some(factor) => nearest_pair(n, factor),
        None => nearest_pair(n, n),
    };
    (small.min(n / small), small.max(n / small))
}

/// The sizes of both matrices for a small one of these rows and columns.
fn divided(weight: [usize; 2], small: [usize; 2]) -> Result<[(usize, usize); 2], AdapterError> {
    if weight.iter().zip(small).any(|(whole, part)| part == 0 || !whole.is_multiple_of(part)) {
        let reason = "the sizes of the small matrix divide those of the weight";
        return Err(AdapterError::Config { method: NAME, reason });
    }
    Ok([0, 1].map(|side| (small[side], weight[side] / small[side])))
}

/// The largest divisor of `n` that is at most `most` and at most the square root of `n`.
fn nearest_pair(n: usize, most: usize) -> usize {
    (1..=most.min(n)).rev().find(|d| n.is_multiple_of(*d) && d * d <= n).unwrap_or(1)
}

/// The adapter of one weight: `w + s (W1 ⊗ W2)ᵀ` on the stored weight `[in, out]`.
#[derive(Module, Debug)]
pub struct Lokr {
    /// The small matrix, `[out_small, in_small]`.
    pub w1: Factor,
    /// The large matrix, `[out_large, in_large kh kw]`.
    pub w2: Factor,
    /// `s`, times the strength.
    scale: f64,
}

/// A trained matrix `[rows, cols]`: whole, or a low-rank product.
#[derive(Module, Debug)]
pub struct Factor {
    /// The matrix, `[rows, cols]`, if it is whole.
    pub whole: Option<Param<Tensor<2>>>,
    /// The first factor, `[rows, r]`, if the matrix is a product.
    pub a: Option<Param<Tensor<2>>>,
    /// The second factor, `[r, cols]`, if the matrix is a product.
    pub b: Option<Param<Tensor<2>>>,
}

impl Factor {
    /// Initializes the matrix. `init_last` makes the factor that decides whether the product is zero.
    fn new(
        low_rank: bool,
        [rows, cols]: [usize; 2],
        rank: usize,
        kaiming: &dyn Fn(&'static str, [usize; 2]) -> Tensor<2>,
        init_last: impl Fn([usize; 2]) -> Tensor<2>,
    ) -> Self {
        if !low_rank {
            return Self {
                whole: Some(Param::from_tensor(init_last([rows, cols]))),
                a: None,
                b: None,
            };
        }
        Self {
            whole: None,
            a: Some(Param::from_tensor(kaiming("a", [rows, rank]))),
            b: Some(Param::from_tensor(init_last([rank, cols]))),
        }
    }

    fn value(&self) -> Option<Tensor<2>> {
        match (&self.whole, &self.a, &self.b) {
            (Some(whole), _, _) => Some(whole.val()),
            (None, Some(a), Some(b)) => Some(matmul(a.val(), b.val())),
            _ => None,
        }
    }
}

impl Adapter for Lokr {
    fn apply(&self, w: Tensor<2>) -> Tensor<2> {
        match (self.w1.value(), self.w2.value()) {
            (Some(w1), Some(w2)) => w + kron(&[w1, w2]).transpose().mul_scalar(self.scale),
            _ => w,
        }
    }

    fn product(&self, x: &Tensor<2>, w: &BaseWeight) -> Option<Tensor<2>> {
        let (rows, [input, output]) = (x.dims()[0], w.dims());
        let factors = [self.w1.value()?.transpose(), self.w2.value()?.transpose()];
        let [small, large] = [0, 1].map(|i| factors[i].dims());
        let cost = CostModel::layer(rows, input, output).and_kronecker(rows, small, large);
        cost.prefers_input(x, w).then(|| {
            let change = kron_right(x.clone().cast(factors[0].dtype()), &factors);
            w.product(x.clone()) + change.mul_scalar(self.scale).cast(w.dtype())
        })
    }

    fn at_strength(self, t: f64) -> Result<Self, LinalgError> {
        Ok(Self { scale: self.scale * t, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factorization_is_that_of_lycoris() {
        // Results of lycoris.functional.factorization(n, factor).
        for (n, factor, expected) in [
            (1280, None, (32, 40)),
            (320, None, (16, 20)),
            (127, None, (1, 127)),
            (512, Some(4), (4, 128)),
            (320, Some(16), (16, 20)),
            (360, Some(12), (12, 30)),
        ] {
            assert_eq!(factorization(n, factor), expected, "{n} {factor:?}");
        }
    }

    #[test]
    fn a_weight_may_have_a_small_matrix_of_its_own_sizes() {
        let weight = Weight::from_matrix(Tensor::zeros([6, 20], &burn::tensor::Device::default()));
        let config = |small: [usize; 2]| LokrConfig {
            rank: 100,
            sizes: BTreeMap::from([("x".to_owned(), small)]),
            ..LokrConfig::default()
        };
        let shapes = |path: &str, small| {
            let adapter = config(small).init(path, &weight)?;
            Ok::<_, AdapterError>([adapter.w1, adapter.w2].map(|w| w.value().map(|w| w.dims())))
        };
        assert_eq!(shapes("x", [10, 3]).ok(), Some([Some([10, 3]), Some([2, 2])]));
        assert_eq!(shapes("x", [1, 1]).ok(), Some([Some([1, 1]), Some([20, 6])]));
        assert_eq!(shapes("y", [10, 3]).ok(), Some([Some([4, 2]), Some([5, 3])]));
        for wrong in [[3, 3], [10, 4], [0, 3], [10, 12]] {
            assert!(shapes("x", wrong).is_err(), "{wrong:?}");
        }
    }
}
