//! Rotations along their geodesics: the logarithm, the exponential, and powers `Qᵗ = exp(t log Q)`.
//!
//! The logarithm by inverse scaling and squaring (Higham, Functions of Matrices, section 11.5), with a
//! square root that orthogonal matrices have for free: the polar factor of `I + Q`, since an eigenvalue
//! `e^{iθ}` becomes `1 + e^{iθ} = 2 cos(θ/2) e^{iθ/2}`.

use burn::tensor::Tensor;
use faer::{Mat, Scale};

use crate::error::LinalgError;
use crate::host::{self, Host};

/// Square roots taken before the series: angles shrink from at most π to π/64.
const HALVINGS: i32 = 6;

/// `asin(x)/x` in powers of `x²`; the next term is below 1e-15 at π/64.
const ASIN: [f64; 5] = [1.0, 1.0 / 6.0, 3.0 / 40.0, 15.0 / 336.0, 105.0 / 3456.0];

/// Order of the Taylor series of the exponential; its remainder at 1/4 is below 1e-16.
const EXP_ORDER: u32 = 12;

/// `Qᵗ` of an orthogonal `[n, n]` matrix, by any real `t`: 0 gives the identity, 1 gives `Q`. Computed in
/// f64 on the host, returned in `q`'s type.
///
/// # Errors
///
/// If the matrix is not square or finite, cannot be read, reflects, or turns some direction by half a
/// turn, so that both ways round are equally short.
pub fn rotation_power(q: &Tensor<2>, t: f64) -> Result<Tensor<2>, LinalgError> {
    Ok(upload(q, &exp(&(log(read_square(q)?)? * Scale(t)))))
}

/// The skew principal logarithm of an orthogonal `[n, n]` matrix, in f64 on the host.
///
/// # Errors
///
/// As [`rotation_power`].
pub fn rotation_log(q: &Tensor<2>) -> Result<Tensor<2>, LinalgError> {
    Ok(upload(q, &log(read_square(q)?)?))
}

/// The exponential of an `[n, n]` matrix, a rotation if that is skew; in f64 on the host.
///
/// # Errors
///
/// If the matrix is not square or finite, or cannot be read.
pub fn rotation_exp(a: &Tensor<2>) -> Result<Tensor<2>, LinalgError> {
    Ok(upload(a, &exp(&read_square(a)?)))
}

fn read_square(a: &Tensor<2>) -> Result<Mat<f64>, LinalgError> {
    let [rows, cols] = a.dims();
    if rows != cols {
        return Err(LinalgError::NotSquare { rows, cols });
    }
    let host = Host::<f64>::read(a)?;
    Ok(host.mat * Scale(host.scale))
}

/// On `like`'s device, in its dtype.
fn upload(like: &Tensor<2>, mat: &Mat<f64>) -> Tensor<2> {
    let entries = host::row_major(mat.as_ref());
    host::entries_as(entries, like.dims(), like.dtype(), &host::plain_device(like))
}

/// The skew principal logarithm of an orthogonal matrix.
pub(crate) fn log(mut q: Mat<f64>) -> Result<Mat<f64>, LinalgError> {
    let n = q.nrows();
    let identity = Mat::<f64>::identity(n, n);
    for _ in 0..HALVINGS {
        let sum = &identity + &q;
        let svd = sum.thin_svd().map_err(|_| LinalgError::NoLogarithm { n })?;
        // 2 cos(θ/2) at a thousandth of a degree from half a turn; a NaN is no larger.
        if !svd.S().column_vector().iter().all(|&value| value >= 1e-5) {
            return Err(LinalgError::NoLogarithm { n });
        }
        q = svd.U() * svd.V().transpose();
    }
    // The skew part has eigenvalues i sin θ, so θ = asin of it.
    let skew = (&q - q.transpose()) * Scale(0.5);
    let sin2 = (&skew * &skew) * Scale(-1.0);
    let mut series = &identity * Scale(ASIN[ASIN.len() - 1]);
    for coefficient in ASIN.iter().rev().skip(1) {
        series = &series * &sin2 + &identity * Scale(*coefficient);
    }
    Ok((&skew * &series) * Scale(2f64.powi(HALVINGS)))
}

/// The exponential, by scaling and squaring a Taylor series.
pub(crate) fn exp(a: &Mat<f64>) -> Mat<f64> {
    let n = a.nrows();
    let halvings = (a.norm_l2() * 4.0).log2().ceil().clamp(0.0, 64.0) as i32;
    let a = a * Scale(2f64.powi(-halvings));
    let identity = Mat::<f64>::identity(n, n);
    // Horner: I + a (I + a/2 (I + a/3 (...)))
    let mut sum = identity.clone();
    for order in (1..=EXP_ORDER).rev() {
        sum = &identity + (&a * &sum) * Scale(1.0 / f64::from(order));
    }
    for _ in 0..halvings {
        sum = &sum * &sum;
    }
    sum
}
