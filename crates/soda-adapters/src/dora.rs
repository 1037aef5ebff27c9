//! DoRA (Liu et al., ICML 2024, arXiv 2402.09353): direction and magnitude apart.
//!
//! `W = m (W0 + ΔW) / ‖W0 + ΔW‖`, one magnitude and one norm for each output. The norm is taken as a
//! constant by the gradient (section 4.3 of the paper), as PEFT does it.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

/// The magnitude of every output.
#[derive(Module, Debug)]
pub struct Magnitude {
    /// `m`, `[out]`, trainable; starts as the norms of the base.
    pub value: Param<Tensor<1>>,
    /// Where it started.
    start: Tensor<1>,
}

impl Magnitude {
    /// The norms of the base `w` `[in, out]`.
    pub fn of(w: &Tensor<2>) -> Self {
        let norms = norms(w.clone());
        Self { value: Param::from_tensor(norms.clone()), start: norms }
    }

    /// `m w / ‖w‖` for the direction `w` `[in, out]`.
    pub fn apply(&self, w: Tensor<2>) -> Tensor<2> {
        // `m / n` as `1 + (m - n) / n`: of equal norms it is exactly 1, also where a device divides by
        // reciprocals, so that a fresh adapter changes no bit. An output that is all zeros has no direction
        // and stays zero.
        let norms = norms(w.clone().detach());
        let empty = norms.clone().equal_elem(0.0);
        let gain = ((self.value.val() - norms.clone()) / norms).mask_fill(empty, 0.0) + 1.0;
        w * gain.unsqueeze_dim(0)
    }

    /// `m₀ + t (m - m₀)`.
    pub(crate) fn at_strength(self, t: f64) -> Self {
        let start = self.start.clone();
        let value = self.value.map(|m| start.clone() + (m - start).mul_scalar(t));
        Self { value, start: self.start }
    }
}

/// `‖w_j‖` for every output `j`, `[out]`.
fn norms(w: Tensor<2>) -> Tensor<1> {
    w.square().sum_dim(0).sqrt().squeeze_dim(0)
}
