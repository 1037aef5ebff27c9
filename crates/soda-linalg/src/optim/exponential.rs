//! Maps `E` from small skew matrices `Z` to orthogonal ones, used as `X <- X E(Z)`.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Which map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exponential {
    /// Forward Euler, `I + Z`: orthogonal to second order only, the retraction does the rest.
    Euler,
}

impl Exponential {
    /// `X E(Z)` for `x` `[b, n, m]` and `z` `[b, m, m]`.
    pub(crate) fn step(self, x: Tensor<3>, z: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Euler => x.clone() + x.matmul(z),
        }
    }
}
