//! Retractions: smooth maps back to the manifold from `X + U`, for a tangent `U`.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use soda_kernels::matmul;

use super::geodesic::generator;
use crate::batched::{BatchLayout, exponential, newton_schulz, polar_retraction};
use crate::cayley::cayley;
use crate::error::LinalgError;
use crate::host::qr::orthogonal_factors;

/// A retraction: a smooth map of a point `X` and a tangent `U` to a point near `X + U`.
///
/// | variant | formula | order | computed on |
/// |---|---|---|---|
/// | `Polar` | `(X + U) ((X + U)ᵀ (X + U))^(-1/2)` | 2 | device |
/// | `Qr` | `Q` of `X + U = Q R`, `diag R >= 0` | 1 | host |
/// | `Cayley` | `(I - W/2)⁻¹ (I + W/2) X` | 2 | device |
/// | `Exponential` | `exp(W) X` | exact | device |
///
/// The error relative to the geodesic is `O(|U|^(order + 1))` (Absil, Mahony and Sepulchre 2008, 4.1). The
/// polar retraction has order 2 in the Euclidean metric, and relative to the canonical geodesic if `X` is
/// square. `W` is the `n x n` generator of the [geodesic](super::geodesic()); for a tall `X` the polar
/// retraction is much the cheapest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Retraction {
    /// The polar factor of `X + U`, by Newton-Schulz iterations.
    Polar,
    /// The orthogonal factor of the QR decomposition of `X + U`, whose `R` has a non-negative diagonal.
    Qr,
    /// The Cayley transform of half the generator `W`, applied to `X`.
    Cayley,
    /// The exponential of the generator `W`, applied to `X`: the geodesic of the canonical metric.
    Exponential,
}

impl Retraction {
    /// Returns the point that the retraction reaches from `x` along the tangent `u`, all `[..., n, m]`.
    ///
    /// # Errors
    ///
    /// Of [`Retraction::Qr`] alone, which runs on the host: [`LinalgError::NotFinite`] if an entry of `x + u`
    /// is NaN or infinite, and [`LinalgError::Read`] if `x + u` cannot be read. The other retractions return
    /// NaN for NaN.
    ///
    /// # Panics
    ///
    /// If the shapes differ.
    ///
    /// ```
    /// use burn::tensor::{Device, Distribution};
    /// use soda_linalg::stiefel::{self, Retraction};
    ///
    /// let x = stiefel::random_point([3, 8, 4], &Device::default());
    /// let u = stiefel::project_tangent(x.clone(), x.random_like(Distribution::Default));
    /// let y = Retraction::Cayley.apply(x, u)?;
    /// assert!(stiefel::orthogonality_error(&y)? < 2e-6);
    /// # Ok::<(), soda_linalg::LinalgError>(())
    /// ```
    pub fn apply<const D: usize>(
        self,
        x: Tensor<D>,
        u: Tensor<D>,
    ) -> Result<Tensor<D>, LinalgError> {
        let layout = BatchLayout::from_tensor(&x);
        if layout.is_empty() {
            return Ok(x);
        }
        Ok(layout.unflatten(self.apply_batch(layout.flatten(x), layout.flatten(u))?))
    }

    /// [`Retraction::apply`] for batches `[b, n, m]`, `n >= m`.
    fn apply_batch(self, x: Tensor<3>, u: Tensor<3>) -> Result<Tensor<3>, LinalgError> {
        match self {
            Self::Polar => Ok(polar_retraction(x + u)),
            Self::Qr => orthogonal_factors(&(x + u)),
            Self::Cayley => Ok(rotated(cayley(generator(&x, &u).mul_scalar(0.5)), x)),
            Self::Exponential => Ok(rotated(exponential(generator(&x, &u)), x)),
        }
    }

    /// The retraction in an optimizer step, which cannot return an error.
    ///
    /// If the QR retraction fails, the result is `x + u`, whose NaN or infinite entries appear in the
    /// parameter.
    pub(crate) fn apply_or_sum(self, x: Tensor<3>, u: Tensor<3>) -> Tensor<3> {
        self.apply_batch(x.clone(), u.clone()).unwrap_or_else(|_| x + u)
    }
}

/// `R X` after one Newton-Schulz iteration, without which thousands of rotations would drift by their
/// rounding.
fn rotated(r: Tensor<3>, x: Tensor<3>) -> Tensor<3> {
    newton_schulz(matmul(r, x), 1)
}
