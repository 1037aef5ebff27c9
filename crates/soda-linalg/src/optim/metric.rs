//! The inner products on the tangents of the Stiefel manifold.
//!
//! The family `<U, W> = tr(Uᵀ (I - a X Xᵀ) W)` (Kong, Wang and Tao, arXiv 2205.14173, section 2).

use serde::{Deserialize, Serialize};

/// The metric, by its number `a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Metric {
    /// `a = 1/2`: the quotient metric, under which a rotation counts once.
    Canonical,
    /// `a = 0`: that of the surrounding space of matrices.
    Euclidean,
}

impl Metric {
    /// `a`.
    fn a(self) -> f64 {
        match self {
            Self::Canonical => 0.5,
            Self::Euclidean => 0.0,
        }
    }

    /// `(1 - b) / 2` with `b = a / (a - 1)`: the weight of `A - Aᵀ` in the skew gradient.
    pub(crate) fn skew_weight(self) -> f64 {
        (1.0 - self.a() / (self.a() - 1.0)) / 2.0
    }

    /// `(3a - 2) / 2`: how much the normal part turns as the frame does.
    pub(crate) fn turn(self) -> f64 {
        (3.0 * self.a() - 2.0) / 2.0
    }
}
