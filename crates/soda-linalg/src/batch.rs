//! Small pieces of algebra on a batch of matrices `[b, n, n]`, in matrix products only.

use burn::tensor::{DType, Tensor};
use soda_kernels::{has_library, in_order, matmul};

/// The identity, broadcast over the batch: `[1, n, n]` beside `like` `[b, _, n]`.
pub(crate) fn identity(like: &Tensor<3>) -> Tensor<3> {
    let [_, _, n] = like.dims();
    // Without autodiff: a constant joins either kind of tensor.
    let device = like.device().without_autodiff();
    Tensor::<2>::eye(n, &device).cast(like.dtype()).unsqueeze_dim(0)
}

/// `XᵀX`.
pub(crate) fn gram(x: &Tensor<3>) -> Tensor<3> {
    matmul(x.clone().transpose(), x.clone())
}

/// `(A + Aᵀ) / 2`.
pub(crate) fn sym(a: Tensor<3>) -> Tensor<3> {
    (a.clone() + a.transpose()).mul_scalar(0.5)
}

/// `(A - Aᵀ) / 2`.
pub(crate) fn skew(a: Tensor<3>) -> Tensor<3> {
    (a.clone() - a.transpose()).mul_scalar(0.5)
}

/// `[b, n, 1]`, of magnitudes; off the tape.
fn row_sums(a: &Tensor<3>) -> Tensor<3> {
    a.clone().without_autodiff().abs().sum_dim(2)
}

/// The largest row sum of magnitudes, `|A|_inf`, over the whole batch: an upper bound on every spectral
/// norm of symmetric and skew matrices. Reads one number back; infinite where the read fails.
pub(crate) fn norm_bound(a: &Tensor<3>) -> f64 {
    row_sums(a).max().try_into_scalar::<f32>().map_or(f64::INFINITY, f64::from)
}

/// The inverse by Newton's iteration `Y <- Y (2 I - M Y)` (Higham, Functions of Matrices, 7.3), for
/// `M = I - A` with `A` skew, hence with singular values in `[1, sqrt(1 + |A|²)]`.
///
/// The iteration runs off the tape. Its last step runs on it, and has the derivative of the inverse,
/// `dY = -Y dM Y`, exactly: the tape holds two products and not the whole iteration.
pub(crate) fn inverse_of_unit_minus_skew(a: Tensor<3>) -> Tensor<3> {
    if has_library(&a) {
        return inverse_unread(a);
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

/// The same without reading anything back, as long as that may take: so that it can be part of a recorded step.
fn inverse_unread(a: Tensor<3>) -> Tensor<3> {
    let bound = row_sums(&a).max_dim(1);
    newton(a, |m| m / (bound.square() + 1.0), UNREAD_STEPS)
}

/// `(I - A)⁻¹` in so many steps from `start` of `Mᵀ`. From `Y = Mᵀ / |M|²` the error of each eigenvalue, `1 - σ²/|M|²`, is
/// squared by every one.
fn newton(a: Tensor<3>, start: impl FnOnce(Tensor<3>) -> Tensor<3>, steps: usize) -> Tensor<3> {
    let identity = identity(&a);
    let step = |m: &Tensor<3>, y: Tensor<3>| {
        let correction = identity.clone() - matmul(m.clone(), y.clone());
        y.clone() + matmul(y, correction)
    };
    let m = identity.clone() - a;
    let constant = m.clone().without_autodiff();
    // In order, for the same bits in every run.
    let first = start(in_order(constant.clone().transpose(), [0, 1, 2]));
    let y = (0..steps).fold(first, |y, _| step(&constant, y));
    step(&m, y)
}

/// Enough for a norm of 1e8; beyond that f32 has no inverse to find.
const MAX_STEPS: usize = 64;
/// Takes the error to 1e-9 for norms up to 225, which are turns of up to 179.5 degrees.
const UNREAD_STEPS: usize = 20;

/// The matrix exponential by scaling and squaring of its Taylor series (Higham, Functions of
/// Matrices, 10.3). Reads the norm back, once.
pub(crate) fn exp(a: Tensor<3>) -> Tensor<3> {
    let norm = norm_bound(&a);
    // |A| <= 1/2 leaves a remainder below 1e-9 after 8 terms, below 1e-17 after 13.
    let halvings = (2.0 * norm).log2().ceil().clamp(0.0, 60.0) as i32;
    let order = if a.dtype() == DType::F64 { 13 } else { 8 };
    let a = a.mul_scalar(2f64.powi(-halvings));
    let identity = identity(&a);
    // Horner: I + A (I + A/2 (I + A/3 (…))).
    let mut sum = identity.clone() + a.clone().div_scalar(f64::from(order));
    for term in (1..order).rev() {
        sum = identity.clone() + matmul(a.clone(), sum).div_scalar(f64::from(term));
    }
    for _ in 0..halvings {
        sum = matmul(sum.clone(), sum);
    }
    sum
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    /// What is never read converges as far as what is, up to its largest norm: the two differ by roundings, which grow with
    /// the condition.
    #[test]
    fn an_inverse_needs_no_reading() {
        for size in [1e-3, 0.3, 4.0, 60.0, 220.0] {
            let free = Distribution::Uniform(-1.0, 1.0);
            let a = skew(Tensor::random([3, 6, 6], free, &Device::default()));
            let a = a.clone().mul_scalar(size / norm_bound(&a));
            let off = inverse_unread(a.clone()) - inverse_of_unit_minus_skew(a);
            let off: Vec<f32> = off.try_to_vec_as().expect("readable");
            let off = soda_testing::max_abs(off);
            assert!(off < 5e-7 * (1.0 + size), "norm {size}: off by {off:e}");
        }
    }
}
