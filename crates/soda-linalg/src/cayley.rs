//! The Cayley transform of skew-symmetric matrices, exact and by the Neumann series.

use burn::tensor::Tensor;
use soda_kernels::matmul;

use crate::batched::{identity_like, inverse_of_identity_minus_skew, skew_part};

/// Returns the skew-symmetric part `(A - Aᵀ) / 2` of each matrix of a batch `[b, n, n]`.
///
/// It makes a skew-symmetric matrix, as [`cayley`] requires, of unconstrained parameters.
pub fn skew(a: Tensor<3>) -> Tensor<3> {
    skew_part(a)
}

/// Returns the Cayley transforms `(I - A)⁻¹ (I + A)`, `[b, n, n]`, of a batch of skew-symmetric matrices
/// `[b, n, n]`.
///
/// Each is a rotation, orthogonal to rounding. The transform reaches every rotation without the eigenvalue -1
/// (Cayley 1846). OFT parametrises its blocks by it (Qiu et al., NeurIPS 2023, arXiv 2306.07280).
///
/// f32 and f64 are supported, and autodiff tensors are differentiated.
///
/// The inverse is by Newton's iteration, in batched matrix products on the device. The number of iterations
/// follows from the largest norm, one number that is read back.
///
/// On a device with a vendor's BLAS library ([`soda_kernels::has_vendor_blas`]) nothing is read, so that a
/// CUDA graph can capture the transform. The number of iterations is then fixed, and suffices for norms up to
/// 225.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use soda_linalg::cayley;
///
/// let t = 0.5_f32; // C rotates by 2 atan t
/// let a = Tensor::<3>::from_data([[[0.0, -t], [t, 0.0]]], &Device::default());
/// let c: Vec<f32> = cayley(a).try_to_vec_as()?;
/// assert!((c[0] - (2.0 * t.atan()).cos()).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn cayley(a: Tensor<3>) -> Tensor<3> {
    let inverse = inverse_of_identity_minus_skew(a.clone());
    // (I - A)⁻¹ (I + A) = 2 (I - A)⁻¹ - I, which saves a product.
    inverse.mul_scalar(2.0) - identity_like(&a)
}

/// Returns the Cayley transforms, `[b, n, n]`, with the inverse replaced by `I + A + A² + … + A^terms`.
///
/// This is the `use_cayley_neumann` option of PEFT's OFT. The result is orthogonal up to `2 |A|^(terms + 1)`,
/// so that `|A|` should be well below 1. Autodiff tensors are differentiated.
pub fn cayley_neumann(a: Tensor<3>, terms: usize) -> Tensor<3> {
    let identity = identity_like(&a);
    // Horner's scheme: I + A (I + A (…)).
    let mut inverse = a.zeros_like() + identity.clone();
    for _ in 0..terms {
        inverse = identity.clone() + matmul(a.clone(), inverse);
    }
    inverse.mul_scalar(2.0) - identity
}
