//! LoHa (FedPara, Hyeon-Woo et al., ICLR 2022, arXiv 2108.06098; LyCORIS): a Hadamard product of low-rank
//! products.
//!
//! `ΔW = s (W1a W1b) ∘ (W2a W2b)` has a rank of up to `r²`.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use soda_kernels::matmul;
use soda_linalg::LinalgError;

use super::bounds::{MAX_PRODUCT_RANK, check_most, low_rank_scale};
use crate::adapter::Adapter;
use crate::error::AdapterError;
use crate::method::Method;
use crate::seeded_init::SeededInit;
use crate::weight::Weight;

/// Settings of LoHa.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LohaConfig {
    /// `r` of each low-rank product.
    pub rank: usize,
    /// `α` of the scale `s = α/r`; the default is the rank, which makes `s = 1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Seed of the random initial values.
    pub seed: u64,
}

impl Default for LohaConfig {
    fn default() -> Self {
        Self { rank: 8, alpha: None, seed: 0 }
    }
}

const NAME: &str = "loha";

impl Method for LohaConfig {
    type Adapter = Loha;

    fn name(&self) -> &'static str {
        NAME
    }

    fn needs_its_base(&self) -> bool {
        false
    }

    fn init(&self, path: &str, weight: &Weight) -> Result<Loha, AdapterError> {
        check_most(NAME, self.rank, MAX_PRODUCT_RANK, "the rank is at most 4096")?;
        let scale = low_rank_scale(NAME, self.rank, self.alpha)?;
        let ([input, output], r) = (weight.dims(), self.rank);
        let init = SeededInit::new(self.seed, path, weight);
        // The initial values of LyCORIS: one zero factor makes the delta zero.
        Ok(Loha {
            w1_a: Param::from_tensor(init.normal("w1_a", [output, r], 0.1)),
            w1_b: Param::from_tensor(init.normal("w1_b", [r, input], 1.0)),
            w2_a: Param::from_tensor(init.zeros([output, r])),
            w2_b: Param::from_tensor(init.normal("w2_b", [r, input], 1.0)),
            scale,
        })
    }
}

/// The adapter of one weight: `w + s ((W1a W1b) ∘ (W2a W2b))ᵀ` on the stored weight `[in, out]`.
///
/// Names and shapes of the parameters are those of LyCORIS.
#[derive(Module, Debug)]
pub struct Loha {
    /// `W1a`, `[out, r]`.
    pub w1_a: Param<Tensor<2>>,
    /// `W1b`, `[r, in]`.
    pub w1_b: Param<Tensor<2>>,
    /// `W2a`, `[out, r]`.
    pub w2_a: Param<Tensor<2>>,
    /// `W2b`, `[r, in]`.
    pub w2_b: Param<Tensor<2>>,
    /// `s`, times the strength.
    scale: f64,
}

impl Adapter for Loha {
    fn apply(&self, w: Tensor<2>) -> Tensor<2> {
        let (first, second) =
            (matmul(self.w1_a.val(), self.w1_b.val()), matmul(self.w2_a.val(), self.w2_b.val()));
        w + (first * second).transpose().mul_scalar(self.scale)
    }

    fn at_strength(self, t: f64) -> Result<Self, LinalgError> {
        Ok(Self { scale: self.scale * t, ..self })
    }
}
