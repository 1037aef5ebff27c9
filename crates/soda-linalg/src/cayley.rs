//! The Cayley transform `C(A) = (I - A)⁻¹ (I + A)` of a skew `A`: a rotation.
//!
//! It reaches every rotation without the eigenvalue -1 (Cayley 1846), is the parametrisation of OFT
//! (Qiu et al., NeurIPS 2023, arXiv 2306.07280) and costs one inverse. The inverse is by Newton's
//! iteration, so on the device and on a batch at once. The Neumann series `I + A + A² + …` of it is the
//! cheaper one, for `|A| < 1` only and with an error of `|A|^(terms + 1)`.

use burn::tensor::Tensor;
use soda_kernels::matmul;

use crate::batch;

/// The skew part `(A - Aᵀ) / 2` of a batch `[b, n, n]`: how a free parameter becomes a skew one.
pub fn skew(a: Tensor<3>) -> Tensor<3> {
    batch::skew(a)
}

/// `(I - A)⁻¹ (I + A)` for a batch of skew matrices `[b, n, n]`, orthogonal to rounding.
///
/// Differentiable on the tape. Reads one number back, the largest norm, to know how long to iterate; where a vendor's library
/// multiplies it reads nothing, so that a step with it can be recorded, and iterates as long as a norm of 225 needs.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use soda_linalg::cayley;
///
/// let t = 0.5_f32; // C turns by 2 atan t
/// let a = Tensor::<3>::from_data([[[0.0, -t], [t, 0.0]]], &Device::default());
/// let c: Vec<f32> = cayley(a).try_to_vec_as()?;
/// assert!((c[0] - (2.0 * t.atan()).cos()).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn cayley(a: Tensor<3>) -> Tensor<3> {
    let inverse = batch::inverse_of_unit_minus_skew(a.clone());
    // (I - A)⁻¹ (I + A) = 2 (I - A)⁻¹ - I: one product less.
    inverse.mul_scalar(2.0) - batch::identity(&a)
}

/// The Cayley transform with the inverse replaced by the first `terms` powers of `A` beside `I`.
///
/// Orthogonal only up to `2 |A|^(terms + 1)`; meant for `|A|` well below 1.
pub fn cayley_neumann(a: Tensor<3>, terms: usize) -> Tensor<3> {
    let identity = batch::identity(&a);
    // Horner: I + A (I + A (…)).
    let mut inverse = a.zeros_like() + identity.clone();
    for _ in 0..terms {
        inverse = identity.clone() + matmul(a.clone(), inverse);
    }
    inverse.mul_scalar(2.0) - identity
}
