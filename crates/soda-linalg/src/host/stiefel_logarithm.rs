//! The Riemannian logarithm of the Stiefel manifold in the canonical metric, in f64 on the host.
//!
//! The algorithm is Zimmermann's (A matrix-algebraic algorithm for the Riemannian logarithm on the Stiefel
//! manifold under the canonical metric, SIAM J. Matrix Anal. 2017).
//!
//! `X` and `Y` are `n x m`, `M = XᵀY`, and `Q N = Y - X M` is a thin QR decomposition. `(M; N)` is completed
//! to an orthogonal `2m x 2m` matrix `V`. The completion is rotated by `V <- V diag(I, exp(-C))` until the
//! lower right block `C` of
//!
//! ```text
//! log V = (A  -Bᵀ)
//!         (B   C )
//! ```
//!
//! vanishes; then `U = X A + Q B`. For square matrices `U = X log(XᵀY)`.

use burn::tensor::Tensor;
use faer::{Mat, Par, Scale};
use rayon::prelude::*;

use super::householder::Householder;
use super::matrix::HostMatrix;
use super::rotation::{exp, log};
use super::transfer::row_major;
use crate::error::LinalgError;

/// The logarithm of each `Y` at its `X`.
pub(crate) struct Logarithms {
    /// The tangents `[b, n, m]`, row by row.
    pub(crate) tangents: Vec<f64>,
    /// The canonical norm of each tangent.
    pub(crate) lengths: Vec<f64>,
}

/// The logarithms between two batches `[b, n, m]`, `n >= m`.
pub(crate) fn logarithms(x: &Tensor<3>, y: &Tensor<3>) -> Result<Logarithms, LinalgError> {
    let [_, n, m] = x.dims();
    let read = |batch: &Tensor<3>| {
        let matrices = batch.clone().split(1, 0).into_iter();
        matrices
            .map(|matrix| {
                let host = HostMatrix::<f64>::read(&matrix.reshape([n, m]))?;
                Ok(host.mat * Scale(host.scale))
            })
            .collect::<Result<Vec<Mat<f64>>, LinalgError>>()
    };
    let (x, y) = (read(x)?, read(y)?);
    let pairs = x.par_iter().zip(&y).map(|(x, y)| logarithm(x, y));
    let pairs: Vec<Logarithm> = pairs.collect::<Result<_, _>>()?;
    Ok(Logarithms {
        tangents: pairs.iter().flat_map(|pair| row_major(pair.tangent.as_ref())).collect(),
        lengths: pairs.iter().map(|pair| pair.length).collect(),
    })
}

struct Logarithm {
    tangent: Mat<f64>,
    length: f64,
}

fn logarithm(x: &Mat<f64>, y: &Mat<f64>) -> Result<Logarithm, LinalgError> {
    let (n, m) = x.shape();
    if n == m {
        let a = log(x.transpose() * y)?;
        let length = (0.5 * a.squared_norm_l2()).sqrt();
        return Ok(Logarithm { tangent: x * a, length });
    }
    let inner = x.transpose() * y;
    let normal = Householder::new((y - x * &inner).as_ref(), Par::Seq);
    let (q, r) = (normal.q(), normal.r());
    let mut v = orthogonal_completion(&inner, &r);
    for _ in 0..MAX_ROTATIONS {
        let log = log(v.clone())?;
        let c = log.submatrix(m, m, m, m).to_owned();
        // faer's `norm_max` drops a NaN.
        if c.col_iter().flat_map(|column| column.iter()).all(|entry| entry.abs() <= 1e-13) {
            return Ok(assemble(x, &q, &log));
        }
        let rotation = exp(&(c * Scale(-1.0)));
        let rotated = v.submatrix(0, m, 2 * m, m) * &rotation;
        v.submatrix_mut(0, m, 2 * m, m).copy_from(&rotated);
    }
    Err(LinalgError::NoConvergence { rows: n, cols: m })
}

/// The iteration converges linearly, with a factor of about the square of the distance.
const MAX_ROTATIONS: usize = 500;

fn assemble(x: &Mat<f64>, q: &Mat<f64>, log: &Mat<f64>) -> Logarithm {
    let m = x.ncols();
    let (a, b) = (log.submatrix(0, 0, m, m), log.submatrix(m, 0, m, m));
    let length = (0.5 * a.squared_norm_l2() + b.squared_norm_l2()).sqrt();
    Logarithm { tangent: x * a + q * b, length }
}

/// An orthogonal `2m x 2m` matrix of determinant 1 whose first columns are `(M; N)`.
///
/// Its lower right block is as near to positive semidefinite as possible, which is the best start of the
/// iteration.
fn orthogonal_completion(inner: &Mat<f64>, r: &Mat<f64>) -> Mat<f64> {
    let m = inner.ncols();
    let columns = Mat::from_fn(2 * m, m, |i, j| if i < m { inner[(i, j)] } else { r[(i - m, j)] });
    let mut v = columns.qr().compute_Q();
    v.submatrix_mut(0, 0, 2 * m, m).copy_from(&columns);
    // Procrustes: V22 = D S Wᵀ, and the completion is rotated by W Dᵀ.
    if let Ok(svd) = v.submatrix(m, m, m, m).svd() {
        let rotated = v.submatrix(0, m, 2 * m, m) * (svd.V() * svd.U().transpose());
        v.submatrix_mut(0, m, 2 * m, m).copy_from(&rotated);
    }
    if v.determinant() < 0.0 {
        v.col_mut(2 * m - 1).iter_mut().for_each(|entry| *entry = -*entry);
    }
    v
}
