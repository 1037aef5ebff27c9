//! The logarithm, the exponential and real powers of orthogonal matrices, in f64 on the host.
//!
//! The logarithm is by inverse scaling and squaring (Higham, Functions of Matrices, 11.5). The square root of
//! an orthogonal `Q` is the polar factor of `I + Q`, because an eigenvalue `e^{iθ}` becomes
//! `1 + e^{iθ} = 2 cos(θ/2) e^{iθ/2}`.

use burn::tensor::Tensor;
use faer::{Mat, Scale};

use super::matrix::HostMatrix;
use super::transfer::{inner_device, row_major, upload_entries};
use crate::error::LinalgError;

/// The number of square roots before the series: angles shrink from at most π to π/64.
const HALVINGS: i32 = 6;

/// `asin(x)/x` in powers of `x²`; the next term is below 1e-15 at π/64.
const ASIN: [f64; 5] = [1.0, 1.0 / 6.0, 3.0 / 40.0, 15.0 / 336.0, 105.0 / 3456.0];

/// The order of the Taylor series of the exponential; its remainder at 1/4 is below 1e-16.
const EXP_ORDER: u32 = 12;

/// `Qᵗ = exp(t log Q)` of an orthogonal `q`, `[n, n]`, in the dtype of `q`.
pub(crate) fn power(q: &Tensor<2>, t: f64) -> Result<Tensor<2>, LinalgError> {
    Ok(upload_like(q, &exp(&(log(read_square(q)?)? * Scale(t)))))
}

/// The principal logarithm of an orthogonal `q`, `[n, n]`, in the dtype of `q`.
pub(crate) fn logarithm(q: &Tensor<2>) -> Result<Tensor<2>, LinalgError> {
    Ok(upload_like(q, &log(read_square(q)?)?))
}

/// The exponential of `a`, `[n, n]`, in the dtype of `a`.
pub(crate) fn exponential(a: &Tensor<2>) -> Result<Tensor<2>, LinalgError> {
    Ok(upload_like(a, &exp(&read_square(a)?)))
}

fn read_square(a: &Tensor<2>) -> Result<Mat<f64>, LinalgError> {
    let [rows, cols] = a.dims();
    if rows != cols {
        return Err(LinalgError::NotSquare { rows, cols });
    }
    let host = HostMatrix::<f64>::read(a)?;
    Ok(host.mat * Scale(host.scale))
}

fn upload_like(like: &Tensor<2>, mat: &Mat<f64>) -> Tensor<2> {
    upload_entries(row_major(mat.as_ref()), like.dims(), like.dtype(), &inner_device(like))
}

/// The skew principal logarithm of an orthogonal matrix.
pub(super) fn log(mut q: Mat<f64>) -> Result<Mat<f64>, LinalgError> {
    let n = q.nrows();
    let identity = Mat::<f64>::identity(n, n);
    for _ in 0..HALVINGS {
        let sum = &identity + &q;
        let svd = sum.thin_svd().map_err(|_| LinalgError::NoLogarithm { n })?;
        // 2 cos(θ/2) at a thousandth of a degree from half a turn; a NaN is not larger either.
        if !svd.S().column_vector().iter().all(|&value| value >= 1e-5) {
            return Err(LinalgError::NoLogarithm { n });
        }
        q = svd.U() * svd.V().transpose();
    }
    // The skew part has eigenvalues i sin θ, so that θ is its arcsine.
    let skew = (&q - q.transpose()) * Scale(0.5);
    let sin2 = (&skew * &skew) * Scale(-1.0);
    let mut series = &identity * Scale(ASIN[ASIN.len() - 1]);
    for coefficient in ASIN.iter().rev().skip(1) {
        series = &series * &sin2 + &identity * Scale(*coefficient);
    }
    Ok((&skew * &series) * Scale(2f64.powi(HALVINGS)))
}

/// The exponential, by scaling and squaring of its Taylor series.
pub(super) fn exp(a: &Mat<f64>) -> Mat<f64> {
    let n = a.nrows();
    let halvings = (a.norm_l2() * 4.0).log2().ceil().clamp(0.0, 64.0) as i32;
    let a = a * Scale(2f64.powi(-halvings));
    let identity = Mat::<f64>::identity(n, n);
    // Horner's scheme: I + a (I + a/2 (I + a/3 (...))).
    let mut sum = identity.clone();
    for order in (1..=EXP_ORDER).rev() {
        sum = &identity + (&a * &sum) * Scale(1.0 / f64::from(order));
    }
    for _ in 0..halvings {
        sum = &sum * &sum;
    }
    sum
}
