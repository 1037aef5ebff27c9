//! The thin QR and LQ decompositions, `A = Q R` and `A = L Q`.
//!
//! By Householder reflections on the host (Golub and Van Loan, Matrix Computations, 5.2).
//!
//! **Sign rule.** The diagonal of `R` and of `L` is non-negative. For a matrix of full rank that makes
//! the decomposition unique; without it, the same file would mean another model on another machine.

use burn::tensor::{Device, Tensor};
use faer::{Mat, Par, get_global_parallelism};
use rayon::prelude::*;
use soda_kernels::matmul;

use crate::error::LinalgError;
use crate::host::{self, Host, Precision, Real};
use crate::householder::Householder;

/// `A = Q R`, off the tape; `k = min(m, n)`.
#[derive(Clone, Debug)]
pub struct Qr {
    /// Orthonormal columns, `[m, k]`.
    pub q: Tensor<2>,
    /// Upper triangular (trapezoidal, if `A` is wide), `[k, n]`.
    pub r: Tensor<2>,
}

/// `A = L Q`, off the tape; `k = min(m, n)`.
#[derive(Clone, Debug)]
pub struct Lq {
    /// Lower triangular (trapezoidal, if `A` is tall), `[m, k]`.
    pub l: Tensor<2>,
    /// Orthonormal rows, `[k, n]`.
    pub q: Tensor<2>,
}

impl Qr {
    /// Decomposes `a`, `[m, n]`; the factors are on `a`'s device in f64 where `a` is, else in f32.
    ///
    /// # Errors
    ///
    /// If `a` is empty or not finite, if an entry of `R` overflows, or if `a` cannot be read.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use soda_linalg::Qr;
    ///
    /// let a = Tensor::<2>::from_data([[-3.0, 1.0], [4.0, 2.0]], &Device::default());
    /// let qr = Qr::thin(&a)?;
    /// let r: Vec<f32> = qr.r.try_to_vec_as()?;
    /// assert!((r[0] - 5.0).abs() < 1e-5 && (r[3] - 2.0).abs() < 1e-5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn thin(a: &Tensor<2>) -> Result<Self, LinalgError> {
        let (device, par) = (host::plain_device(a), get_global_parallelism());
        match host::is_double(a) {
            true => Ok(thin(Host::<f64>::read(a)?, par)?.upload(&device)),
            false => Ok(thin(Host::<f32>::read(a)?, par)?.upload(&device)),
        }
    }

    /// Decomposes many matrices, one per core at a time; the results are in the order of the input,
    /// each with its own error.
    pub fn thin_batch(matrices: &[Tensor<2>]) -> Vec<Result<Self, LinalgError>> {
        // All of a model's weights and their factors at once would be several copies of the model.
        let window = 4 * rayon::current_num_threads();
        let decompose = |a: &Tensor<2>| match host::is_double(a) {
            true => Ok(Precision::Double(thin(Host::<f64>::read(a)?, Par::Seq)?)),
            false => Ok(Precision::Single(thin(Host::<f32>::read(a)?, Par::Seq)?)),
        };
        let mut results = Vec::with_capacity(matrices.len());
        for window in matrices.chunks(window) {
            let factors: Vec<Result<_, LinalgError>> = window.par_iter().map(decompose).collect();
            // Uploads stay on the calling thread, whose queue the tensors belong to.
            results.extend(window.iter().zip(factors).map(|(a, factors)| {
                let device = host::plain_device(a);
                Ok(match factors? {
                    Precision::Single(factors) => factors.upload(&device),
                    Precision::Double(factors) => factors.upload(&device),
                })
            }));
        }
        results
    }

    /// `Q R`, `[m, n]`.
    pub fn recompose(&self) -> Tensor<2> {
        matmul(self.q.clone(), self.r.clone())
    }
}

impl Lq {
    /// Decomposes `a`, `[m, n]`: the QR decomposition of its transpose, transposed.
    ///
    /// # Errors
    ///
    /// As [`Qr::thin`].
    pub fn thin(a: &Tensor<2>) -> Result<Self, LinalgError> {
        let Qr { q, r } = Qr::thin(&a.clone().transpose())?;
        Ok(Self { l: r.transpose(), q: q.transpose() })
    }

    /// `L Q`, `[m, n]`.
    pub fn recompose(&self) -> Tensor<2> {
        matmul(self.l.clone(), self.q.clone())
    }
}

struct Factors<T> {
    q: Mat<T>,
    /// Row by row.
    r: Vec<T>,
    cols: usize,
}

impl<T: Real> Factors<T> {
    fn upload(self, device: &Device) -> Qr {
        let shape = [self.q.ncols(), self.cols];
        Qr {
            q: host::matrix(self.q.as_ref(), device),
            r: host::vector(self.r, device).reshape(shape),
        }
    }
}

fn thin<T: Real>(a: Host<T>, par: Par) -> Result<Factors<T>, LinalgError> {
    let (q, r) = positive_diagonal(&a.mat, par);
    let r = a.rescale(host::row_major(r.as_ref()).into_iter())?;
    Ok(Factors { q, r, cols: a.mat.ncols() })
}

/// Thin QR with a non-negative diagonal.
pub(crate) fn positive_diagonal<T: Real>(a: &Mat<T>, par: Par) -> (Mat<T>, Mat<T>) {
    let householder = Householder::new(a.as_ref(), par);
    let (mut q, mut r) = (householder.q(), householder.r());
    for i in 0..q.ncols() {
        if r[(i, i)].to_double() < 0.0 {
            q.col_mut(i).iter_mut().for_each(|entry| *entry = -*entry);
            r.row_mut(i).iter_mut().for_each(|entry| *entry = -*entry);
        }
    }
    (q, r)
}
