//! The rotation `R = R1 ⊗ R2 ⊗ … ⊗ Rm` of a layer's input, each factor small, square and orthogonal.
//!
//! `y = x R W0ᵀ`: the input is rotated, then mapped as before. On burn's stored weight `W0ᵀ`
//! (`[in, out]`) that is `R` from the left. The product is never formed: every factor is one mode
//! product, `in · out · Σ nᵢ` multiply-adds in all.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use soda_linalg::kron_left;

/// Kronecker factors of an orthogonal `[in, in]` matrix; the first is the slowest index.
#[derive(Module, Debug)]
pub struct Rotation {
    /// `Rᵢ`, `[nᵢ, nᵢ]`, `Π nᵢ = in`.
    pub factors: Vec<Param<Tensor<2>>>,
}

impl Rotation {
    /// The identity with factors of the given sizes, f32.
    pub fn identity(sizes: &[usize], device: &Device) -> Self {
        let factors = sizes.iter().map(|&n| Param::from_tensor(Tensor::eye(n, device))).collect();
        Self { factors }
    }

    /// `R w` for `w` `[in, out]`.
    pub fn apply(&self, w: Tensor<2>) -> Tensor<2> {
        let factors: Vec<_> = self.factors.iter().map(Param::val).collect();
        kron_left(&factors, w)
    }
}
