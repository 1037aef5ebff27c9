//! The inverse of `I - A` for skew `A`, by Newton's iteration `Y <- Y (2 I - M Y)`.
//!
//! With `M = I - A` and `A` skew, the singular values of `M` lie in `[1, sqrt(1 + |A|²)]`. From
//! `Y = Mᵀ / |M|²` the error of each eigenvalue, `1 - σ²/|M|²`, is squared by every step
//! (Higham, Functions of Matrices, 7.3).
//!
//! All steps but the last run without autodiff. The last one has the derivative of the inverse,
//! `dY = -Y dM Y`, exactly, so that autodiff stores two products instead of the whole iteration.

use burn::tensor::{DType, Tensor};
use soda_kernels::{has_vendor_blas, matmul, with_stride_order};

use super::algebra::{absolute_row_sums, identity_like, norm_bound};

/// `(I - A)⁻¹` for a batch of skew matrices `[b, n, n]`.
///
/// The number of steps follows from a norm that is read back from the device. On a device with a vendor's
/// BLAS library the number is fixed instead, and nothing is read.
pub(crate) fn inverse_of_identity_minus_skew(a: Tensor<3>) -> Tensor<3> {
    if has_vendor_blas(&a) {
        return inverse_in_fixed_steps(a);
    }
    let bound = norm_bound(&a);
    let largest = 1.0 + bound * bound;
    let target = if a.dtype() == DType::F64 { 1e-17 } else { 1e-9 };
    let mut error = 1.0 - 1.0 / largest;
    let mut steps = 0;
    while error > target && steps < MAX_STEPS {
        error *= error;
        steps += 1;
    }
    newton(a, |m| m.div_scalar(largest), steps)
}

/// `(I - A)⁻¹` in [`FIXED_STEPS`] steps without a read, so that a CUDA graph can capture it.
fn inverse_in_fixed_steps(a: Tensor<3>) -> Tensor<3> {
    let bound = absolute_row_sums(&a).max_dim(1);
    newton(a, |m| m / (bound.square() + 1.0), FIXED_STEPS)
}

/// `(I - A)⁻¹` in `steps` steps and one with autodiff; `start` makes the first `Y` from `Mᵀ`.
fn newton(a: Tensor<3>, start: impl FnOnce(Tensor<3>) -> Tensor<3>, steps: usize) -> Tensor<3> {
    let identity = identity_like(&a);
    let step = |m: &Tensor<3>, y: Tensor<3>| {
        let correction = identity.clone() - matmul(m.clone(), y.clone());
        y.clone() + matmul(y, correction)
    };
    let m = identity.clone() - a;
    let constant = m.clone().without_autodiff();
    // Row-major strides, so that every run gives the same bits.
    let first = start(with_stride_order(constant.clone().transpose(), [0, 1, 2]));
    let y = (0..steps).fold(first, |y, _| step(&constant, y));
    step(&m, y)
}

/// Enough for a norm of 1e8, beyond which f32 cannot represent the inverse.
const MAX_STEPS: usize = 64;
/// Reduces the error to 1e-9 for norms up to 225, which are Cayley rotations of up to 179.5 degrees.
const FIXED_STEPS: usize = 20;

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::super::algebra::skew_part;
    use super::*;

    /// The two variants differ by roundings, which grow with the condition number.
    #[test]
    fn the_fixed_number_of_steps_suffices_up_to_its_norm() {
        for size in [1e-3, 0.3, 4.0, 60.0, 220.0] {
            let uniform = Distribution::Uniform(-1.0, 1.0);
            let a = skew_part(Tensor::random([3, 6, 6], uniform, &Device::default()));
            let a = a.clone().mul_scalar(size / norm_bound(&a));
            let difference = inverse_in_fixed_steps(a.clone()) - inverse_of_identity_minus_skew(a);
            let difference: Vec<f32> = difference.try_to_vec_as().expect("readable");
            let error = soda_testing::max_abs(difference);
            assert!(error < 5e-7 * (1.0 + size), "norm {size}: error {error:e}");
        }
    }
}
