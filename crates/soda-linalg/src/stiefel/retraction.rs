//! Retractions: smooth ways back to the manifold from `X + U`, `U` a tangent, that agree with the
//! geodesic to first order (Absil, Mahony and Sepulchre 2008, 4.1).
//!
//! | | formula | order | where |
//! |---|---|---|---|
//! | polar | `(X + U) ((X + U)ᵀ (X + U))^(-1/2)` | 2 | device |
//! | QR | `Q` of `X + U = Q R`, `diag R >= 0` | 1 | host |
//! | Cayley | `(I - W/2)⁻¹ (I + W/2) X` | 2 | device |
//! | exponential | `exp(W) X` | exact | device |
//!
//! The order is that of agreement with the geodesic: the error is `O(|U|^(order + 1))`. In the
//! Euclidean metric the polar retraction is of second order; beside the canonical geodesic it is of
//! second order too where `X` is square. `W` is that of [the geodesic](mod@super::geodesic), and
//! `n x n`: for a tall `X` polar is much the cheapest.

use burn::tensor::Tensor;
use faer::Par;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use soda_kernels::matmul;

use super::geodesic::generator;
use crate::batch;
use crate::cayley::cayley;
use crate::error::LinalgError;
use crate::host::{self, Host};
use crate::polar;
use crate::qr;
use crate::stack::Stack;

/// A retraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Retraction {
    /// The polar factor, by Newton-Schulz.
    Polar,
    /// The orthogonal factor of a QR decomposition with a non-negative diagonal.
    Qr,
    /// The Cayley transform of the generator.
    Cayley,
    /// The exponential of the generator: the geodesic of the canonical metric.
    Exponential,
}

impl Retraction {
    /// The point reached from `x` along the tangent `u`, both `[..., n, m]`.
    ///
    /// # Errors
    ///
    /// Of the QR retraction alone, which runs on the host: if `x + u` is not finite or cannot be read.
    ///
    /// ```
    /// use burn::tensor::{Device, Distribution};
    /// use soda_linalg::stiefel::{self, Retraction};
    ///
    /// let x = stiefel::random([3, 8, 4], &Device::default());
    /// let u = stiefel::tangent(x.clone(), x.random_like(Distribution::Default));
    /// let y = Retraction::Cayley.apply(x, u)?;
    /// assert!(stiefel::defect(&y)? < 2e-6);
    /// # Ok::<(), soda_linalg::LinalgError>(())
    /// ```
    pub fn apply<const D: usize>(
        self,
        x: Tensor<D>,
        u: Tensor<D>,
    ) -> Result<Tensor<D>, LinalgError> {
        let stack = Stack::of(&x);
        if stack.is_empty() {
            return Ok(x);
        }
        Ok(stack.unfold(self.step(stack.fold(x), stack.fold(u))?))
    }

    /// [`Retraction::apply`] on `[b, n, m]`.
    pub(crate) fn step(self, x: Tensor<3>, u: Tensor<3>) -> Result<Tensor<3>, LinalgError> {
        match self {
            Self::Polar => Ok(polar::retract(x + u)),
            Self::Qr => orthogonal_factors(&(x + u)),
            Self::Cayley => Ok(turned(cayley(generator(&x, &u).mul_scalar(0.5)), x)),
            Self::Exponential => Ok(turned(batch::exp(generator(&x, &u)), x)),
        }
    }

    /// [`Retraction::step`] inside an optimizer, which has no way to fail: what is not finite stays so
    /// and shows in the parameter.
    pub(crate) fn step_or_show(self, x: Tensor<3>, u: Tensor<3>) -> Tensor<3> {
        self.step(x.clone(), u.clone()).unwrap_or_else(|_| x + u)
    }
}

/// `R X`, and one Newton-Schulz step: a product of thousands of rotations would drift by their rounding.
fn turned(r: Tensor<3>, x: Tensor<3>) -> Tensor<3> {
    polar::newton_schulz(matmul(r, x), 1)
}

fn orthogonal_factors(x: &Tensor<3>) -> Result<Tensor<3>, LinalgError> {
    let [batch, n, m] = x.dims();
    let device = host::plain_device(x);
    let read = |x: Tensor<3>| Host::<f64>::read(&x.reshape([n, m]));
    let hosts = x.clone().split(1, 0).into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let factor = |host: &Host<f64>| qr::positive_diagonal(&host.mat, Par::Seq).0;
    let factors: Vec<_> = hosts.par_iter().map(factor).collect();
    let entries: Vec<f64> = factors.iter().flat_map(|q| host::row_major(q.as_ref())).collect();
    Ok(host::entries_as(entries, [batch, n, m], x.dtype(), &device))
}
