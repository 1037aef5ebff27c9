//! The inner products on the tangents of the Stiefel manifold.

use serde::{Deserialize, Serialize};

/// The inner product `<U, W> = tr(Uᵀ (I - a X Xᵀ) W)` on the tangents at `X`, by its number `a`.
///
/// (Kong, Wang and Tao, arXiv 2205.14173, section 2.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Metric {
    /// The canonical metric, `a = 1/2`, that of the quotient `O(n) / O(n - m)`.
    Canonical,
    /// The Euclidean metric, `a = 0`, that of the surrounding space of matrices.
    Euclidean,
}

impl Metric {
    fn a(self) -> f64 {
        match self {
            Self::Canonical => 0.5,
            Self::Euclidean => 0.0,
        }
    }

    /// `(1 - b) / 2` with `b = a / (a - 1)`: the weight of `A - Aᵀ` in the skew part of the gradient.
    pub(super) fn skew_weight(self) -> f64 {
        (1.0 - self.a() / (self.a() - 1.0)) / 2.0
    }

    /// `(3a - 2) / 2`: the weight of `V Y` in the step of the normal part `V`.
    pub(super) fn normal_weight(self) -> f64 {
        (3.0 * self.a() - 2.0) / 2.0
    }
}
