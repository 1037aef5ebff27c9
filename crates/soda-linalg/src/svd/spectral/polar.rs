//! The polar factor of a batch, the limit of `X <- X (a I + b XᵀX + c (XᵀX)²)`.

use burn::tensor::{Tensor, TensorReadError};
use soda_kernels::PolarIteration;

use super::norms::{epsilon, frobenius};
use crate::batched::{gram, identity_like};

/// Coefficients `[a, b, c]` that multiply small singular values by `a` and keep `[0.68, 1.2]` within itself.
const GROWTH: [f64; 3] = [3.4445, -4.7750, 2.0315];
/// Coefficients with `x = 1` as a fixed point of third order (Higham, Functions of Matrices, 8.3).
const THIRD_ORDER: [f64; 3] = [15.0 / 8.0, -10.0 / 8.0, 3.0 / 8.0];

/// The largest number of steps, enough for a singular value of 1e-20.
const MAX_STEPS: usize = 80;

/// The polar factor of a batch `[b, m, n]`, `m >= n`, of full rank, with `growth_steps` steps of [`GROWTH`]
/// first.
pub(super) fn polar_factor(
    x: Tensor<3>,
    growth_steps: usize,
) -> Result<Tensor<3>, TensorReadError> {
    let gram = gram(&x);
    let bound = frobenius(&gram);
    polar_factor_of_scaled(x / bound.clone().sqrt(), gram / bound, growth_steps)
}

/// [`polar_factor`] of `X` with singular values in `(0, 1]` and its Gram matrix `XᵀX`.
pub(super) fn polar_factor_of_scaled(
    x: Tensor<3>,
    gram: Tensor<3>,
    growth_steps: usize,
) -> Result<Tensor<3>, TensorReadError> {
    let identity = identity_like(&x);
    // A step of third order takes an error `e` to less than `e³`.
    let near = 0.5 * epsilon(&x).cbrt();
    let mut iterate = PolarIteration::new(x, gram);
    for step in 0..MAX_STEPS {
        let coefficients = if step < growth_steps { GROWTH } else { THIRD_ORDER };
        let last = step >= growth_steps && {
            let error = frobenius(&(iterate.gram().clone() - identity.clone())).max();
            let error = error.try_into_scalar::<f64>()?;
            error.is_nan() || error < near
        };
        if last {
            return Ok(iterate.finish(coefficients));
        }
        iterate = iterate.step(coefficients);
    }
    Ok(iterate.into_iterate())
}
