//! The logarithm of the canonical metric, the inverse of the geodesic, and the distance it gives.
//!
//! By Zimmermann's iteration (A matrix-algebraic algorithm for the Riemannian logarithm on the Stiefel
//! manifold under the canonical metric, SIAM J. Matrix Anal. 2017). Where `X` and `Y` are `n x m`, with
//! `M = XᵀY` and `Q N = Y - X M` a thin QR, `(M; N)` is completed to an orthogonal `2m x 2m` matrix
//! `V`. The completion is turned until the lower right block `C` of
//!
//! ```text
//! log V = (A  -Bᵀ)
//!         (B   C )
//! ```
//!
//! vanishes, by `V <- V diag(I, exp(-C))`; then `U = X A + Q B`. For square matrices that is
//! `X log(XᵀY)`. In f64 on the host.

use burn::tensor::Tensor;
use faer::{Mat, Par, Scale};
use rayon::prelude::*;

use crate::error::LinalgError;
use crate::host::{self, Host};
use crate::householder::Householder;
use crate::rotation::{exp, log};
use crate::stack::Stack;

/// The tangent at `x` whose geodesic is at `y` at time 1; both `[..., n, m]`.
///
/// # Errors
///
/// If the shapes differ, a matrix is not finite or cannot be read, or the points are so far apart that
/// the shortest way is not unique (half a turn in some plane, or, for square matrices, a reflection).
pub fn logarithm<const D: usize>(x: &Tensor<D>, y: &Tensor<D>) -> Result<Tensor<D>, LinalgError> {
    let stack = Stack::of(x);
    let logarithms = logarithms(x, y)?;
    if stack.is_empty() {
        return Ok(x.clone());
    }
    let entries = logarithms.iter().flat_map(|log| host::row_major(log.tangent.as_ref())).collect();
    let shape = [stack.batch, stack.n, stack.m];
    Ok(stack.unfold(host::entries_as(entries, shape, stack.compute(), &host::plain_device(x))))
}

/// The distance of each pair in the canonical metric, in the order of the batch.
///
/// # Errors
///
/// As [`logarithm()`].
pub fn distance<const D: usize>(x: &Tensor<D>, y: &Tensor<D>) -> Result<Vec<f64>, LinalgError> {
    Ok(logarithms(x, y)?.iter().map(|log| log.length).collect())
}

struct Logarithm {
    tangent: Mat<f64>,
    length: f64,
}

fn logarithms<const D: usize>(x: &Tensor<D>, y: &Tensor<D>) -> Result<Vec<Logarithm>, LinalgError> {
    if x.dims() != y.dims() {
        let (left, right) = (x.dims().to_vec(), y.dims().to_vec());
        return Err(LinalgError::ShapeMismatch { left, right });
    }
    let stack = Stack::of(x);
    if stack.is_empty() {
        return Ok(Vec::new());
    }
    let read = |tensor: &Tensor<D>| {
        let matrices = stack.fold(tensor.clone()).split(1, 0).into_iter();
        matrices
            .map(|matrix| {
                let host = Host::<f64>::read(&matrix.reshape([stack.n, stack.m]))?;
                Ok(host.mat * Scale(host.scale))
            })
            .collect::<Result<Vec<Mat<f64>>, LinalgError>>()
    };
    let (x, y) = (read(x)?, read(y)?);
    x.par_iter().zip(&y).map(|(x, y)| between(x, y)).collect()
}

fn between(x: &Mat<f64>, y: &Mat<f64>) -> Result<Logarithm, LinalgError> {
    let (n, m) = x.shape();
    if n == m {
        let a = log(x.transpose() * y)?;
        let length = (0.5 * a.squared_norm_l2()).sqrt();
        return Ok(Logarithm { tangent: x * a, length });
    }
    let inner = x.transpose() * y;
    let normal = Householder::new((y - x * &inner).as_ref(), Par::Seq);
    let (q, r) = (normal.q(), normal.r());
    let mut v = completed(&inner, &r);
    for _ in 0..MAX_TURNS {
        let log = log(v.clone())?;
        let c = log.submatrix(m, m, m, m).to_owned();
        // faer's `norm_max` would drop a NaN.
        if c.col_iter().flat_map(|column| column.iter()).all(|entry| entry.abs() <= 1e-13) {
            return Ok(assemble(x, &q, &log));
        }
        let turn = exp(&(c * Scale(-1.0)));
        let turned = v.submatrix(0, m, 2 * m, m) * &turn;
        v.submatrix_mut(0, m, 2 * m, m).copy_from(&turned);
    }
    Err(LinalgError::NoConvergence { rows: n, cols: m })
}

/// The iteration contracts linearly, by about the square of the distance.
const MAX_TURNS: usize = 500;

fn assemble(x: &Mat<f64>, q: &Mat<f64>, log: &Mat<f64>) -> Logarithm {
    let m = x.ncols();
    let (a, b) = (log.submatrix(0, 0, m, m), log.submatrix(m, 0, m, m));
    let length = (0.5 * a.squared_norm_l2() + b.squared_norm_l2()).sqrt();
    Logarithm { tangent: x * a + q * b, length }
}

/// An orthogonal `2m x 2m` matrix of determinant 1 that begins with the columns `(M; N)`, its lower
/// right block as near to positive as it can be, which is where the iteration starts best.
fn completed(inner: &Mat<f64>, r: &Mat<f64>) -> Mat<f64> {
    let m = inner.ncols();
    let columns = Mat::from_fn(2 * m, m, |i, j| if i < m { inner[(i, j)] } else { r[(i - m, j)] });
    let mut v = columns.qr().compute_Q();
    v.submatrix_mut(0, 0, 2 * m, m).copy_from(&columns);
    // Procrustes: V22 = D S Wᵀ, and the completion is turned by W Dᵀ.
    if let Ok(svd) = v.submatrix(m, m, m, m).svd() {
        let turned = v.submatrix(0, m, 2 * m, m) * (svd.V() * svd.U().transpose());
        v.submatrix_mut(0, m, 2 * m, m).copy_from(&turned);
    }
    if v.determinant() < 0.0 {
        v.col_mut(2 * m - 1).iter_mut().for_each(|entry| *entry = -*entry);
    }
    v
}
