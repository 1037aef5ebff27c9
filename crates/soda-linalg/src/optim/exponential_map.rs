//! Maps from small skew-symmetric matrices to orthogonal ones.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use soda_kernels::matmul;

use crate::batched::exponential;
use crate::cayley::cayley;

/// The map `E` from a skew-symmetric `Z` to an orthogonal matrix, in the step `X <- X E(Z)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExponentialMap {
    /// Forward Euler, `I + Z`: orthogonal to second order, which the retraction corrects.
    Euler,
    /// The Cayley transform `(I - Z/2)⁻¹ (I + Z/2)`: orthogonal, and `exp(Z)` to second order. May read a
    /// norm back.
    Cayley,
    /// The matrix exponential `exp(Z)`. Reads a norm back from the device.
    Exact,
}

impl ExponentialMap {
    /// `X E(Z)` for `x` `[b, n, m]` and `z` `[b, m, m]`.
    pub(super) fn step(self, x: Tensor<3>, z: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Euler => x.clone() + matmul(x, z),
            Self::Cayley => matmul(x, cayley(z.mul_scalar(0.5))),
            Self::Exact => matmul(x, exponential(z)),
        }
    }
}
