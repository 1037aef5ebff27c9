//! DoRA (Liu et al., ICML 2024, arXiv 2402.09353): direction and magnitude apart.
//!
//! `W = m (W0 + ΔW) / ‖W0 + ΔW‖`, one magnitude and one norm for each output. The norm is taken as a
//! constant by the gradient (section 4.3 of the paper), as PEFT does it.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use soda_kernels::matmul;

/// The magnitude of every output.
#[derive(Module, Debug)]
pub struct Magnitude {
    /// `m`, `[out]`, trainable; starts as the norms of the base.
    pub value: Param<Tensor<1>>,
    /// Where it started.
    start: Tensor<1>,
    /// The squares of that, before a root was taken.
    squares: Tensor<1>,
}

impl Magnitude {
    /// The norms of the base `w` `[in, out]`.
    pub fn of(w: &Tensor<2>) -> Self {
        let squares = squares(w.clone());
        let norms = squares.clone().sqrt();
        Self { value: Param::from_tensor(norms.clone()), start: norms, squares }
    }

    /// `m w / ‖w‖` for the direction `w` `[in, out]`.
    pub fn apply(&self, w: Tensor<2>) -> Tensor<2> {
        let squares = squares(w.clone().detach());
        w * self.gain(squares).unsqueeze_dim(0)
    }

    /// `m / ‖w0 + a b‖`, `[out]`, for the base `w0` `[in, out]`, without forming the sum:
    /// `‖w0 + a b‖² = ‖w0‖² + Σ b ∘ (2 aᵀ w0 + aᵀ a b)`.
    pub(crate) fn gain_beside(&self, w0: &Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
        let (a, b) = (a.detach(), b.detach());
        let turned = a.clone().transpose();
        let cross = matmul(turned.clone(), w0.clone()).mul_scalar(2);
        let change = (b.clone() * (cross + matmul(matmul(turned, a), b))).sum_dim(0);
        // A sum that cancels may come out below zero.
        self.gain((self.squares.clone() + change.squeeze_dim(0)).clamp_min(0.0))
    }

    /// `m / n` for the squares of `n`.
    fn gain(&self, squares: Tensor<1>) -> Tensor<1> {
        // As `1 + (m - n) / n`: of equal norms it is exactly 1, also where a device divides by
        // reciprocals, so that a fresh adapter changes no bit. An output that is all zeros has no direction
        // and stays zero.
        let norms = squares.sqrt();
        let empty = norms.clone().equal_elem(0.0);
        ((self.value.val() - norms.clone()) / norms).mask_fill(empty, 0.0) + 1.0
    }

    /// `m₀ + t (m - m₀)`.
    pub(crate) fn at_strength(self, t: f64) -> Self {
        let start = self.start.clone();
        let value = self.value.map(|m| start.clone() + (m - start).mul_scalar(t));
        Self { value, ..self }
    }
}

/// `‖w_j‖²` for every output `j`, `[out]`.
fn squares(w: Tensor<2>) -> Tensor<1> {
    w.square().sum_dim(0).squeeze_dim(0)
}
