//! Maps `E` from small skew matrices `Z` to orthogonal ones, used as `X <- X E(Z)`.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use soda_kernels::matmul;

use crate::batch;
use crate::cayley::cayley;

/// Which map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exponential {
    /// Forward Euler, `I + Z`: orthogonal to second order only, the retraction does the rest.
    Euler,
    /// `(I - Z/2)⁻¹ (I + Z/2)`: orthogonal, and the exponential to second order. Reads a norm back.
    Cayley,
    /// `exp(Z)`. Reads a norm back.
    Exact,
}

impl Exponential {
    /// `X E(Z)` for `x` `[b, n, m]` and `z` `[b, m, m]`.
    pub(crate) fn step(self, x: Tensor<3>, z: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Euler => x.clone() + matmul(x, z),
            Self::Cayley => matmul(x, cayley(z.mul_scalar(0.5))),
            Self::Exact => matmul(x, batch::exp(z)),
        }
    }
}
