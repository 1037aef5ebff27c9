//! DoRA (Liu et al., ICML 2024, arXiv 2402.09353): the magnitude of each output, trained beside its
//! direction.
//!
//! `W = m (W0 + ΔW) / ‖W0 + ΔW‖`, with one magnitude and one norm for each output. The gradient takes the
//! norm as a constant (section 4.3 of the paper), as PEFT does. [`LoraConfig::dora`](super::lora::LoraConfig)
//! turns it on.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use soda_kernels::matmul;

/// The trained magnitudes of a layer's outputs.
#[derive(Module, Debug)]
pub struct Magnitude {
    /// `m`, `[out]`, trainable. The initial values are the norms of the base weight.
    pub value: Param<Tensor<1>>,
    /// The initial magnitudes, `[out]`.
    start: Tensor<1>,
    /// The squares of the initial magnitudes, before the root was taken, `[out]`.
    squares: Tensor<1>,
}

impl Magnitude {
    /// Initializes the magnitudes with the norms of the base weight `w` `[in, out]`.
    pub fn from_weight(w: &Tensor<2>) -> Self {
        let squares = squared_norms(w.clone());
        let norms = squares.clone().sqrt();
        Self { value: Param::from_tensor(norms.clone()), start: norms, squares }
    }

    /// Computes `m w / ‖w‖` for the direction `w` `[in, out]`.
    pub fn apply(&self, w: Tensor<2>) -> Tensor<2> {
        let squares = squared_norms(w.clone().detach());
        w * self.gain(squares).unsqueeze_dim(0)
    }

    /// Computes `m / ‖w0 + a b‖`, `[out]`, for the base weight `w0` `[in, out]` without forming the sum:
    /// `‖w0 + a b‖² = ‖w0‖² + Σ b ∘ (2 aᵀ w0 + aᵀ a b)`.
    pub(crate) fn gain_of_low_rank(&self, w0: &Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
        let (a, b) = (a.detach(), b.detach());
        let transposed = a.clone().transpose();
        let w0 = w0.clone().cast(a.dtype());
        let cross = matmul(transposed.clone(), w0).mul_scalar(2);
        let change = (b.clone() * (cross + matmul(matmul(transposed, a), b))).sum_dim(0);
        // Cancellation may leave a value below zero.
        self.gain((self.squares.clone() + change.squeeze_dim(0)).clamp_min(0.0))
    }

    /// Computes `m / n` for the squares of the norms `n`.
    fn gain(&self, squares: Tensor<1>) -> Tensor<1> {
        // `1 + (m - n) / n` is exactly 1 for equal norms, also where a device divides by a reciprocal, so
        // that an initial adapter changes no bit. An output with all weights zero has no direction and stays
        // zero.
        let norms = squares.sqrt();
        let zero = norms.clone().equal_elem(0.0);
        ((self.value.val() - norms.clone()) / norms).mask_fill(zero, 0.0) + 1.0
    }

    /// The magnitudes `m₀ + t (m - m₀)`.
    pub(crate) fn at_strength(self, t: f64) -> Self {
        let start = self.start.clone();
        let value = self.value.map(|m| start.clone() + (m - start).mul_scalar(t));
        Self { value, ..self }
    }
}

/// `‖w_j‖²` for every output `j`, `[out]`.
fn squared_norms(w: Tensor<2>) -> Tensor<1> {
    w.square().sum_dim(0).squeeze_dim(0)
}
