//! Random points of the manifold.

use burn::tensor::{Device, Distribution, Tensor};

use crate::batched::{BatchLayout, newton_schulz};

/// Returns a random point of the given shape `[..., n, m]`, in the float dtype of the device.
///
/// The distribution is uniform under the orthogonal group (Haar): the point is the polar factor of a Gaussian
/// matrix. The numbers come from the device's generator (`Device::seed`).
///
/// ```
/// use burn::tensor::Device;
/// use soda_linalg::stiefel;
///
/// let x = stiefel::random_point([7, 20, 5], &Device::default()); // seven points of St(20, 5)
/// assert!(stiefel::orthogonality_error(&x)? < 2e-6);
/// # Ok::<(), soda_linalg::LinalgError>(())
/// ```
pub fn random_point<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let gaussian = Tensor::random(shape, Distribution::Normal(0.0, 1.0), device);
    let layout = BatchLayout::from_tensor(&gaussian);
    if layout.is_empty() {
        return gaussian;
    }
    // The least singular value of a square Gaussian is about 1/n of its largest, and rarely far below.
    let x = newton_schulz(layout.flatten(gaussian), ITERATIONS);
    layout.unflatten(x)
}

/// Enough for a least singular value of 1e-6 of the largest: a factor of 1.5 each, then quadratic
/// convergence.
const ITERATIONS: usize = 40;
