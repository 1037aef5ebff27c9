//! The decomposition of one batch: polar factor, eigenvectors, order, signs and errors.

use burn::tensor::{Tensor, TensorReadError};
use soda_kernels::matmul;

use super::eigenvectors::eigenvectors;
use super::indicator::{indicator, positions, sign};
use super::noise::noise;
use super::norms::{epsilon, frobenius};
use super::ordering::{permutation, rank_descending};
use super::polar::polar_factor;
use crate::batched::{gram, identity_like, symmetric_part};

/// The factors of each matrix of a batch.
pub(super) struct ThinBatch {
    /// `U`, `[b, m, k]`.
    pub(super) u: Tensor<3>,
    /// The singular values, `[b, 1, k]`, descending.
    pub(super) s: Tensor<3>,
    /// `Vᵀ`, `[b, k, n]`.
    pub(super) vt: Tensor<3>,
    /// The error of each matrix: the larger of its backward error in `eps √m`, and of the distance of its
    /// factors from orthonormal in `eps √k`. NaN if an entry of a factor is not finite.
    pub(super) error: Vec<f64>,
}

/// Decomposes finite matrices `[b, m, n]`, in f32 or f64.
pub(super) fn thin(a: Tensor<3>) -> Result<ThinBatch, TensorReadError> {
    let [_, m, n] = a.dims();
    if m < n {
        let ThinBatch { u, s, vt, error } = thin_tall(a.transpose())?;
        return Ok(signed(ThinBatch { u: vt.transpose(), s, vt: u.transpose(), error }));
    }
    Ok(signed(thin_tall(a)?))
}

/// The factors of matrices with `m >= n`, with any signs.
fn thin_tall(a: Tensor<3>) -> Result<ThinBatch, TensorReadError> {
    let ([_, m, n], eps) = (a.dims(), epsilon(&a));
    let scale = a.clone().abs().max_dim(2).max_dim(1);
    let scale = scale.clone() + indicator(scale, |scale| scale.equal_scalar(0));
    let a = a / scale.clone();
    let norm = frobenius(&a);
    let unit = norm.clone() + indicator(norm.clone(), |norm| norm.equal_scalar(0));
    // A rank-deficient matrix has no unique polar factor; noise of size `4 eps |A|` gives it one.
    let noise = noise([m, n], &a).mul_scalar(4.0 * eps / ((m * n) as f64).sqrt());
    let up = polar_factor(a.clone() + noise * unit.clone(), 10)?;
    let h = symmetric_part(matmul(up.clone().transpose(), a.clone()));
    let v = eigenvectors(h, norm)?.transpose();

    let identity = identity_like(&v);
    let newton_step =
        |x: Tensor<3>| x.clone() + matmul(x.clone(), (identity.clone() - gram(&x)).mul_scalar(0.5));
    let v = newton_step(v);
    let u = newton_step(matmul(up, v.clone()));
    let image = matmul(a, v.clone());
    let s = (u.clone() * image.clone()).sum_dim(1);
    let signs = sign(&s);
    let (u, s) = (u * signs.clone(), s * signs);

    let residual = frobenius(&(image - u.clone() * s.clone())) / unit;
    let orthogonality_error = |x: &Tensor<3>| {
        (gram(x) - identity.clone()).abs().max_dim(2).max_dim(1).div_scalar((n as f64).sqrt())
    };
    let factor_error = orthogonality_error(&u).max_pair(orthogonality_error(&v));
    let error = residual.div_scalar((m as f64).sqrt()).max_pair(factor_error);
    // Maxima may drop a NaN. A NaN in `u` or `v` is in `s` too, and infinity or NaN times zero is NaN.
    let overflow = (s.clone() * scale.clone()).mul_scalar(0).sum_dim(2);
    let error = (error.div_scalar(eps) + overflow).try_to_vec_as::<f64>()?;

    let order = permutation(rank_descending(&s.clone().transpose()));
    let (u, v) = (matmul(u, order.clone()), matmul(v, order.clone()));
    let s = (order * s.transpose()).sum_dim(1) * scale;
    Ok(ThinBatch { u, s, vt: v.transpose(), error })
}

/// Applies the sign convention of [`crate::Svd`].
fn signed(ThinBatch { u, s, vt, error }: ThinBatch) -> ThinBatch {
    let magnitude = u.clone().abs();
    let gap = magnitude.clone().max_dim(1) - magnitude;
    let is_largest = indicator(gap, |gap| gap.lower_equal_scalar(0));
    // The first of equal entries has the largest quotient.
    let earliness = is_largest / (positions(u.dims()[1], &u) + 1);
    let gap = earliness.clone().max_dim(1) - earliness;
    let is_first = indicator(gap, |gap| gap.lower_equal_scalar(0));
    let signs = sign(&(u.clone() * is_first).sum_dim(1));
    ThinBatch { u: u * signs.clone(), s, vt: vt * signs.transpose(), error }
}
