//! Thin singular value decompositions on the host, by bidiagonalisation and divide and conquer.

use burn::tensor::{Device, Tensor};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, SvdError, SvdParams, svd, svd_scratch};
use faer::{Auto, Mat, MatRef, Par, get_global_parallelism};
use rayon::prelude::*;

use super::householder::Householder;
use super::matrix::{HostMatrix, make_largest_positive};
use super::real::{EitherPrecision, Real, is_f64};
use super::transfer::{inner_device, upload_matrix, upload_vector};
use crate::error::LinalgError;

/// `U`, `[m, k]`; `s`, `[k]`, descending; `Vᵀ`, `[k, n]`.
pub(crate) type ThinFactors = (Tensor<2>, Tensor<1>, Tensor<2>);

/// The arithmetic of matrices that are not f64.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    /// f32.
    F32,
    /// f64, with factors that are rounded to f32 once.
    F64Rounded,
}

/// Decomposes one matrix on all cores.
pub(crate) fn thin(a: &Tensor<2>) -> Result<ThinFactors, LinalgError> {
    let device = inner_device(a);
    let par = get_global_parallelism();
    if is_f64(a) {
        Ok(signed_factors(&HostMatrix::<f64>::read(a)?, par)?.upload(&device))
    } else {
        Ok(signed_factors(&HostMatrix::<f32>::read(a)?, par)?.upload(&device))
    }
}

/// Decomposes many matrices, one matrix per core at a time; results are in the order of the input.
pub(crate) fn thin_batch(
    matrices: &[&Tensor<2>],
    arithmetic: Arithmetic,
) -> Vec<Result<ThinFactors, LinalgError>> {
    // In windows: all weights of a model and their factors at once would be several copies of the model.
    let windows = matrices.chunks(4 * rayon::current_num_threads());
    windows.flat_map(|window| thin_window(window, arithmetic)).collect()
}

/// Reads and uploads stay on the calling thread, whose stream the tensors belong to.
fn thin_window(
    matrices: &[&Tensor<2>],
    arithmetic: Arithmetic,
) -> Vec<Result<ThinFactors, LinalgError>> {
    /// A matrix, and whether its factors are rounded to f32.
    type Double = (HostMatrix<f64>, bool);
    let read = |a: &Tensor<2>| -> Result<EitherPrecision<HostMatrix<f32>, Double>, LinalgError> {
        Ok(match (is_f64(a), arithmetic) {
            (true, _) => EitherPrecision::F64((HostMatrix::read(a)?, false)),
            (false, Arithmetic::F64Rounded) => EitherPrecision::F64((HostMatrix::read(a)?, true)),
            (false, Arithmetic::F32) => EitherPrecision::F32(HostMatrix::read(a)?),
        })
    };
    let hosts: Vec<Result<_, LinalgError>> = matrices.iter().map(|a| read(a)).collect();
    let factors: Vec<Result<_, LinalgError>> = hosts
        .into_par_iter()
        .map(|host| {
            Ok(match host? {
                EitherPrecision::F32(host) => {
                    EitherPrecision::F32(signed_factors(&host, Par::Seq)?)
                }
                EitherPrecision::F64((host, true)) => {
                    EitherPrecision::F32(signed_factors(&host, Par::Seq)?.rounded(&host)?)
                }
                EitherPrecision::F64((host, false)) => {
                    EitherPrecision::F64(signed_factors(&host, Par::Seq)?)
                }
            })
        })
        .collect();
    let upload = |(a, factors): (&&Tensor<2>, Result<_, LinalgError>)| {
        Ok(match factors? {
            EitherPrecision::F32(factors) => Factors::<f32>::upload(factors, &inner_device(a)),
            EitherPrecision::F64(factors) => Factors::<f64>::upload(factors, &inner_device(a)),
        })
    };
    matrices.iter().zip(factors).map(upload).collect()
}

struct Factors<T> {
    u: Mat<T>,
    s: Vec<T>,
    v: Mat<T>,
}

impl<T: Real> Factors<T> {
    fn upload(self, device: &Device) -> ThinFactors {
        let u = upload_matrix(self.u.as_ref(), device);
        (u, upload_vector(self.s, device), upload_matrix(self.v.transpose(), device))
    }
}

impl Factors<f64> {
    /// The factors in f32; an error if a singular value of `a` leaves the range of f32.
    fn rounded(&self, a: &HostMatrix<f64>) -> Result<Factors<f32>, LinalgError> {
        let round = |a: &Mat<f64>| Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] as f32);
        let s: Vec<f32> = self.s.iter().map(|&s| s as f32).collect();
        if s.iter().all(|s| s.is_finite()) {
            Ok(Factors { u: round(&self.u), s, v: round(&self.v) })
        } else {
            let (rows, cols) = a.mat.shape();
            Err(LinalgError::Overflow { rows, cols })
        }
    }
}

/// The factors at the scale of the input, by the sign convention.
fn signed_factors<T: Real>(a: &HostMatrix<T>, par: Par) -> Result<Factors<T>, LinalgError> {
    let tall = a.mat.nrows() >= a.mat.ncols();
    let mat = if tall { a.mat.as_ref() } else { a.mat.transpose() };
    let mut factors = decompose(mat, par).map_err(|_| a.no_convergence())?;
    let Factors { u, s, v } = &mut factors;
    if !tall {
        std::mem::swap(u, v);
    }
    for (u, v) in u.col_iter_mut().zip(v.col_iter_mut()) {
        make_largest_positive(u, Some(v));
    }
    *s = a.rescale(s.iter().copied())?;
    Ok(factors)
}

/// From this ratio of rows to columns on, a QR decomposition first is faster.
const TALL: usize = 2;

/// The factors of a tall or square matrix, with any signs.
fn decompose<T: Real>(a: MatRef<'_, T>, par: Par) -> Result<Factors<T>, SvdError> {
    let (m, n) = a.shape();
    if m >= TALL * n {
        let qr = Householder::new(a, par);
        let factors = decompose(qr.r().as_ref(), par)?;
        return Ok(Factors { u: qr.q_times(factors.u.as_ref()), ..factors });
    }
    let (mut u, mut s, mut v) = (Mat::zeros(m, n), Diag::zeros(n), Mat::zeros(n, n));
    let vectors = ComputeSvdVectors::Thin;
    // faer's own QR would drop the remainder of nearly dependent columns.
    let params = SvdParams { qr_ratio_threshold: f64::INFINITY, ..<SvdParams as Auto<T>>::auto() };
    let scratch = svd_scratch::<T>(m, n, vectors, vectors, par, params.into());
    let mut buffer = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut buffer);
    svd(a, s.as_mut(), Some(u.as_mut()), Some(v.as_mut()), par, stack, params.into())?;
    Ok(Factors { u, s: s.column_vector().iter().copied().collect(), v })
}
