//! One division of a spectrum, as batched matrix products.
//!
//! `S`, the polar factor of `H - σI`, has the eigenvectors of `H` and the eigenvalues 1 and -1. With
//! `J = diag(1, …, 1, -1, …, -1)` of the same signature, `S (I + SJ) = (I + SJ) J`. Hence `Q`, the polar
//! factor of `I + SJ`, satisfies `S Q = Q J`: its first columns span the eigenvectors above `σ`, and the
//! others those below.
//!
//! `σ` is the mean of the `n` eigenvalues plus `θ |H - mean I|_F / n`, `0 < θ < 1`, and an eigenvalue lies
//! above it. Numbers with mean 0 and standard deviation `d` satisfy `max |min| >= d²` and `|min| <= d √n`,
//! hence `max >= d / √n = |H - mean I|_F / n`. The mean itself can be an eigenvalue of a symmetric spectrum.

use burn::tensor::{Tensor, TensorData, TensorReadError};
use soda_kernels::matmul;

use super::indicator::{indicator, positions};
use super::norms::{frobenius, total};
use super::ordering::{permutation, rank_descending};
use super::polar::polar_factor_of_scaled;
use crate::batched::{gram, identity_like, symmetric_part};

/// Rotates the first `sizes` rows `[b, t, n]` of each part: first those of eigenvalues above `σ`, then the
/// others.
///
/// `images` are the products of the rows with `H`. The second result is the number of rows above `σ`, or
/// `None` if the spectrum is no wider than `negligible`, `[b, 1, 1]`.
pub(super) fn divide(
    rows: Tensor<3>,
    images: Tensor<3>,
    sizes: Vec<f64>,
    negligible: Tensor<3>,
) -> Result<(Tensor<3>, Vec<Option<usize>>), TensorReadError> {
    let [b, t, _] = rows.dims();
    let (device, dtype) = (rows.device(), rows.dtype());
    let size = Tensor::<1>::from_data(TensorData::new(sizes.clone(), [b]), (&device, dtype));
    let size = size.reshape([b, 1, 1]);
    let h = symmetric_part(matmul(images, rows.clone().transpose()));
    let identity = identity_like(&h);
    let inside = indicator(positions(t, &rows) - size.clone(), |past| past.lower_scalar(0));
    let inside_identity = identity.clone() * inside.clone();
    let padding = identity.clone() - inside_identity.clone();

    let h = h * inside.clone() * inside.clone().transpose();
    let mean = total(h.clone() * identity.clone()) / size.clone();
    let h = h - inside_identity.clone() * mean;
    let spread = frobenius(&h);
    let done = indicator(spread.clone() - negligible, |excess| excess.lower_equal_scalar(0));
    let x = h - inside_identity.clone() * (spread.mul_scalar(0.3) / size);
    let x = x * done.ones_like().sub(done.clone()) + inside_identity * done.clone();

    // |X²|_F exceeds the square of the spectral norm of X by a factor of at most √t.
    let square = matmul(x.clone(), x.clone());
    let bound = frobenius(&square);
    let scaled = x / bound.clone().sqrt() + padding.clone();
    let s = symmetric_part(polar_factor_of_scaled(scaled, square / bound + padding, 7)?);

    let diagonal = (s.clone() * identity.clone()).sum_dim(2);
    let above = ((diagonal.clone() + 1).mul_scalar(0.5) * inside.clone()).sum_dim(1).round();
    // Rows with the largest diagonal entries are nearest to the upper part; padding stays last.
    let place = rank_descending(&(diagonal + inside.clone().mul_scalar(4)));
    let is_below = indicator(place.clone() - above.clone(), |past| past.greater_equal_scalar(0));
    let j = ((is_below * inside).mul_scalar(-2) + 1).transpose();
    let half_sum = |s: Tensor<3>| (identity.clone() + s * j.clone()).mul_scalar(0.5);
    let m = half_sum(s.clone());
    let q = polar_factor_of_scaled(m.clone(), gram(&m), 5)?;
    // A second pass from there: a small singular value of `I + SJ` has lost as many digits.
    let m = half_sum(matmul(q.clone().transpose(), matmul(s, q.clone())));
    let q = matmul(q, polar_factor_of_scaled(m.clone(), gram(&m), 0)?);
    let q = matmul(q, permutation(place));

    let count = (above - done.mul_scalar(2 * t as i64)).try_to_vec_as::<f64>()?;
    let counts = count.into_iter().zip(sizes);
    let above = counts.map(|(above, size)| (above >= 0.0).then(|| above.min(size) as usize));
    Ok((matmul(q.transpose(), rows), above.collect()))
}
