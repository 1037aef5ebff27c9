//! The shift `δ` of a weight's singular values: `W = U diag(relu(s + δ)) Vᵀ`.
//!
//! It is applied as a correction of the exact weight, `W0 + U diag(relu(s + δ) - s) Vᵀ`, so that a
//! fresh adapter (`δ = 0`, hence a gain of exactly zero) changes no bit, which rebuilding `W0` from
//! its factors would.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use soda_linalg::Svd;

/// A trainable spectral shift in the frozen singular basis of one weight.
#[derive(Module, Debug)]
pub struct Spectrum {
    /// `δ`, `[k]`, trainable.
    pub delta: Param<Tensor<1>>,
    /// Left singular vectors of the stored weight, `[in, k]`; recomputed from the base, never saved.
    u: Tensor<2>,
    /// Singular values, `[k]`, descending.
    s: Tensor<1>,
    /// Right singular vectors, `[k, out]`.
    vt: Tensor<2>,
}

impl Spectrum {
    /// The shift `init` (0 for a fresh adapter) on every singular value of the stored weight.
    pub fn new(svd: Svd, init: f32) -> Self {
        let delta = Tensor::full(svd.s.dims(), init, &svd.s.device());
        Self { delta: Param::from_tensor(delta), u: svd.u, s: svd.s, vt: svd.vt }
    }

    /// `w + U diag(relu(s + δ) - s) Vᵀ` for the weight `w` `[in, out]` it was made from.
    pub fn apply(&self, w: Tensor<2>) -> Tensor<2> {
        let gain = activation::relu(self.s.clone() + self.delta.val()) - self.s.clone();
        w + (self.u.clone() * gain.unsqueeze_dim(0)).matmul(self.vt.clone())
    }
}
