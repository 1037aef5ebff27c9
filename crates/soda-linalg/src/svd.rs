//! The thin singular value decomposition `A = U diag(s) Vᵀ`.
//!
//! `A` is `m x n` and `k = min(m, n)`; `U` (`m x k`) and `V` (`n x k`) have orthonormal columns, `s` is
//! non-negative and descending. Computed on the host (Golub and Van Loan, Matrix Computations, 8.6:
//! bidiagonalisation, then divide and conquer), many large ones on a GPU in matrix products.
//!
//! **Sign rule.** Each pair of singular vectors is unique up to one common sign. Here the entry of
//! largest magnitude in each column of `U` is positive (the first of equals), so that numbers stored
//! against a basis mean the same on every machine. Inside a cluster of equal singular values the
//! vectors are unique only up to a rotation, and no rule on signs can repair that.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, SvdError, SvdParams, svd, svd_scratch};
use faer::{Auto, Mat, MatRef, Par, get_global_parallelism};
use rayon::prelude::*;
use soda_kernels::matmul;

use crate::error::LinalgError;
use crate::host::{self, Host, Precision, Real};
use crate::householder::Householder;
use crate::stacks;

/// The sign rules of [`Svd`] and of [`Qr`](crate::Qr), for files whose numbers mean something only by them.
pub const SIGN_RULES: &str =
    "svd: largest entry of each column of U positive; qr: diagonal of R not negative";

/// A thin singular value decomposition, off the tape.
#[derive(Clone, Debug)]
pub struct Svd {
    /// Left singular vectors, `[m, k]`.
    pub u: Tensor<2>,
    /// Singular values, `[k]`, descending.
    pub s: Tensor<1>,
    /// Right singular vectors, transposed, `[k, n]`.
    pub vt: Tensor<2>,
}

impl Svd {
    /// Decomposes `a`, `[m, n]`; the factors are on `a`'s device in f64 where `a` is, else in f32.
    ///
    /// A tensor on the tape is read as the constant it is: no gradient flows through the factors.
    ///
    /// # Errors
    ///
    /// If `a` is empty or not finite, if a singular value overflows, if the iteration does not
    /// converge, or if `a` cannot be read from its device.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use soda_linalg::Svd;
    ///
    /// let a = Tensor::<2>::from_data([[0.0, 3.0], [-4.0, 0.0]], &Device::default());
    /// let svd = Svd::thin(&a)?;
    /// assert_eq!(svd.s.to_data().try_to_vec::<f32>()?, [4.0, 3.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn thin(a: &Tensor<2>) -> Result<Self, LinalgError> {
        let device = host::plain_device(a);
        let par = get_global_parallelism();
        if host::is_double(a) {
            Ok(thin(&Host::<f64>::read(a)?, par)?.upload(&device))
        } else {
            Ok(thin(&Host::<f32>::read(a)?, par)?.upload(&device))
        }
    }

    /// Decomposes many matrices; the results are in the order of the input, each with its own error.
    ///
    /// A GPU whose products are those of a vendor's library ([`soda_kernels::has_library`]) takes matrices with
    /// both sides from 1024 on, by [`Svd::thin_batch_in_products`], and from 512 on where there are 16 of one shape. All
    /// others go to the host, and so does one that
    /// is not exact enough there: one per core at a time, faster than one after the other, because the iteration on
    /// the bidiagonal leaves cores idle.
    pub fn thin_batch(matrices: &[Tensor<2>]) -> Vec<Result<Self, LinalgError>> {
        let mut alike = BTreeMap::<[usize; 2], usize>::new();
        for a in matrices {
            *alike.entry(a.dims()).or_default() += 1;
        }
        let large = |a: &Tensor<2>| {
            let [rows, cols] = a.dims();
            let many = alike[&[rows, cols]] >= MANY;
            rows.min(cols) >= if many { MANY_IN_PRODUCTS } else { IN_PRODUCTS }
        };
        divided(matrices, |a| large(a) && soda_kernels::has_library(a))
    }

    /// [`Svd::thin_batch`] computed in f64 on the host, the factors of what is not f64 then rounded to f32: each once,
    /// whatever the decomposition summed up.
    ///
    /// `U diag(s) Vᵀ` is then the matrix as nearly as numbers of f32 can say it, and `((x U) diag(s)) Vᵀ` as near to `x A`
    /// as a product in f32 is. Factors computed in f32 are three to thirty times as far off, in half the time
    /// (`docs/math.md`).
    ///
    /// # Errors
    ///
    /// As [`Svd::thin`].
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use soda_linalg::Svd;
    ///
    /// let a = Tensor::<2>::from_data([[0.1, 0.2], [0.3, 0.4]], &Device::default());
    /// let svd = Svd::thin_batch_rounded(&[a.clone()]).remove(0)?;
    /// assert!(svd.recompose().all_close(a, None, Some(1e-7)));
    /// # Ok::<(), soda_linalg::LinalgError>(())
    /// ```
    pub fn thin_batch_rounded(matrices: &[Tensor<2>]) -> Vec<Result<Self, LinalgError>> {
        in_windows(&matrices.iter().collect::<Vec<_>>(), Rounding::Once)
    }

    /// [`Svd::thin_batch`] in matrix products alone, whatever the device; matrices of one shape as one stack.
    ///
    /// The polar decomposition, then division of the spectrum (Nakatsukasa and Higham, SIAM J. Sci. Comput. 2013):
    /// about `400 n³` flops for an `n x n` matrix of random entries, twenty times as many as on the host, at the
    /// speed of a product.
    ///
    /// # Errors
    ///
    /// As [`Svd::thin`]. Factors with an error above `16 eps √max(m, n)` count as not converged: so it ends where
    /// products are rounded to less than f32.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use soda_linalg::Svd;
    ///
    /// let a = Tensor::<2>::from_data([[0.0, 3.0], [-4.0, 0.0]], &Device::default());
    /// let svd = Svd::thin_batch_in_products(&[a]).remove(0)?;
    /// let s: Vec<f32> = svd.s.try_to_vec_as()?;
    /// assert!((s[0] - 4.0).abs() < 1e-5 && (s[1] - 3.0).abs() < 1e-5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn thin_batch_in_products(matrices: &[Tensor<2>]) -> Vec<Result<Self, LinalgError>> {
        let found = stacks::decompose(&matrices.iter().collect::<Vec<_>>());
        let one = |(svd, a): (Option<Self>, &Tensor<2>)| match svd {
            Some(svd) => Ok(svd),
            None => Err(Host::<f64>::read(a)?.no_convergence()),
        };
        found.into_iter().zip(matrices).map(one).collect()
    }

    /// `U diag(s) Vᵀ`, `[m, n]`.
    pub fn recompose(&self) -> Tensor<2> {
        matmul(self.u.clone() * self.s.clone().unsqueeze_dim(0), self.vt.clone())
    }
}

/// The smaller side from which products win, and from which they do where so many of a shape are decomposed at once.
const IN_PRODUCTS: usize = 1024;
const MANY_IN_PRODUCTS: usize = 512;
const MANY: usize = 16;

/// [`Svd::thin_batch`], in products where `chosen`.
fn divided(
    matrices: &[Tensor<2>],
    chosen: impl Fn(&Tensor<2>) -> bool,
) -> Vec<Result<Svd, LinalgError>> {
    let (large, other): (Vec<_>, Vec<_>) = (0..matrices.len()).partition(|&i| chosen(&matrices[i]));
    let at = |indices: &[usize]| indices.iter().map(|&i| &matrices[i]).collect::<Vec<_>>();
    let mut results: Vec<(usize, Result<Svd, LinalgError>)> = Vec::with_capacity(matrices.len());
    let mut rest = other;
    for (i, svd) in large.iter().copied().zip(stacks::decompose(&at(&large))) {
        match svd {
            Some(svd) => results.push((i, Ok(svd))),
            None => rest.push(i),
        }
    }
    results.extend(rest.iter().copied().zip(in_windows(&at(&rest), Rounding::AllAlong)));
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, svd)| svd).collect()
}

/// When what is decomposed to factors of f32 is rounded to f32.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rounding {
    /// After every operation.
    AllAlong,
    /// At the end.
    Once,
}

fn in_windows(matrices: &[&Tensor<2>], rounding: Rounding) -> Vec<Result<Svd, LinalgError>> {
    // All of a model's weights and their factors at once would be several copies of the model.
    let windows = matrices.chunks(4 * rayon::current_num_threads());
    windows.flat_map(|window| thin_window(window, rounding)).collect()
}

/// Device reads and uploads stay on the calling thread, whose queue the tensors belong to.
fn thin_window(matrices: &[&Tensor<2>], rounding: Rounding) -> Vec<Result<Svd, LinalgError>> {
    /// A matrix, and whether its factors are to be rounded.
    type Double = (Host<f64>, bool);
    let read = |a: &Tensor<2>| -> Result<Precision<Host<f32>, Double>, LinalgError> {
        Ok(match (host::is_double(a), rounding) {
            (true, _) => Precision::Double((Host::read(a)?, false)),
            (false, Rounding::Once) => Precision::Double((Host::read(a)?, true)),
            (false, Rounding::AllAlong) => Precision::Single(Host::read(a)?),
        })
    };
    let hosts: Vec<Result<_, LinalgError>> = matrices.iter().map(|a| read(a)).collect();
    let factors: Vec<Result<_, LinalgError>> = hosts
        .into_par_iter()
        .map(|host| {
            Ok(match host? {
                Precision::Single(host) => Precision::Single(thin(&host, Par::Seq)?),
                Precision::Double((host, true)) => {
                    Precision::Single(thin(&host, Par::Seq)?.rounded(&host)?)
                }
                Precision::Double((host, false)) => Precision::Double(thin(&host, Par::Seq)?),
            })
        })
        .collect();
    let upload = |(a, factors): (&&Tensor<2>, Result<_, LinalgError>)| {
        Ok(match factors? {
            Precision::Single(factors) => Factors::<f32>::upload(factors, &host::plain_device(a)),
            Precision::Double(factors) => Factors::<f64>::upload(factors, &host::plain_device(a)),
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
    fn upload(self, device: &Device) -> Svd {
        Svd {
            u: host::matrix(self.u.as_ref(), device),
            s: host::vector(self.s, device),
            vt: host::matrix(self.v.transpose(), device),
        }
    }
}

impl Factors<f64> {
    /// In f32, refused where the singular values of `a` leave its range.
    fn rounded(&self, a: &Host<f64>) -> Result<Factors<f32>, LinalgError> {
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

fn thin<T: Real>(a: &Host<T>, par: Par) -> Result<Factors<T>, LinalgError> {
    let tall = a.mat.nrows() >= a.mat.ncols();
    let mat = if tall { a.mat.as_ref() } else { a.mat.transpose() };
    let mut factors = decompose(mat, par).map_err(|_| a.no_convergence())?;
    let Factors { u, s, v } = &mut factors;
    if !tall {
        std::mem::swap(u, v);
    }
    for (u, v) in u.col_iter_mut().zip(v.col_iter_mut()) {
        host::make_largest_positive(u, Some(v));
    }
    *s = a.rescale(s.iter().copied())?;
    Ok(factors)
}

/// From this ratio of the sides on, a QR decomposition first is faster.
const TALL: usize = 2;

/// Of a tall or square matrix, with any signs.
fn decompose<T: Real>(a: MatRef<'_, T>, par: Par) -> Result<Factors<T>, SvdError> {
    let (m, n) = a.shape();
    if m >= TALL * n {
        let qr = Householder::new(a, par);
        let factors = decompose(qr.r().as_ref(), par)?;
        return Ok(Factors { u: qr.q_times(factors.u.as_ref()), ..factors });
    }
    let (mut u, mut s, mut v) = (Mat::zeros(m, n), Diag::zeros(n), Mat::zeros(n, n));
    let vectors = ComputeSvdVectors::Thin;
    // faer's own QR would drop what it takes for dependent columns.
    let params = SvdParams { qr_ratio_threshold: f64::INFINITY, ..<SvdParams as Auto<T>>::auto() };
    let scratch = svd_scratch::<T>(m, n, vectors, vectors, par, params.into());
    let mut buffer = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut buffer);
    svd(a, s.as_mut(), Some(u.as_mut()), Some(v.as_mut()), par, stack, params.into())?;
    Ok(Factors { u, s: s.column_vector().iter().copied().collect(), v })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever goes which way, and back to the host from there.
    #[test]
    fn every_matrix_gets_its_own_result() {
        let device = Device::default();
        let diagonal = |s: f32, n: usize| Tensor::<2>::eye(n, &device).mul_scalar(s);
        let mut matrices: Vec<_> = (1..13).map(|i| diagonal(i as f32, 2 + i % 3)).collect();
        matrices[3] = matrices[3].clone().mul_scalar(f32::NAN);
        matrices[8] = Tensor::zeros([0, 4], &device);
        for every in 1..4 {
            let chosen = |a: &Tensor<2>| a.dims()[1].is_multiple_of(every);
            let results = divided(&matrices, chosen);
            assert_eq!(results.len(), 12);
            for (i, result) in results.into_iter().enumerate() {
                match (i, result) {
                    (3, result) => {
                        assert!(matches!(result, Err(LinalgError::NotFinite { .. })));
                    }
                    (8, result) => assert!(matches!(result, Err(LinalgError::Empty { .. }))),
                    (i, result) => {
                        let s: Vec<f32> =
                            result.expect("finite").s.try_to_vec_as().expect("readable");
                        assert_eq!(s.len(), 2 + (i + 1) % 3);
                        assert!(s.iter().all(|s| (s - (i + 1) as f32).abs() < 1e-4), "{i}: {s:?}");
                    }
                }
            }
        }
    }
}
