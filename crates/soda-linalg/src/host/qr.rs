//! Thin QR decompositions on the host, with a non-negative diagonal of `R`.

use burn::tensor::{Device, Tensor};
use faer::{Mat, Par, get_global_parallelism};
use rayon::prelude::*;

use super::householder::Householder;
use super::matrix::HostMatrix;
use super::real::{EitherPrecision, Real, is_f64};
use super::transfer::{inner_device, row_major, upload_entries, upload_matrix, upload_vector};
use crate::error::LinalgError;

/// `Q`, `[m, k]`, and `R`, `[k, n]`, of `a`, `[m, n]`; one matrix on all cores.
pub(crate) fn thin(a: &Tensor<2>) -> Result<(Tensor<2>, Tensor<2>), LinalgError> {
    let (device, par) = (inner_device(a), get_global_parallelism());
    match is_f64(a) {
        true => Ok(decompose(HostMatrix::<f64>::read(a)?, par)?.upload(&device)),
        false => Ok(decompose(HostMatrix::<f32>::read(a)?, par)?.upload(&device)),
    }
}

/// [`thin`] of each matrix, one matrix per core at a time.
pub(crate) fn thin_batch(
    matrices: &[Tensor<2>],
) -> Vec<Result<(Tensor<2>, Tensor<2>), LinalgError>> {
    // In windows: all factors of a model's weights at once would be several copies of the model.
    let window = 4 * rayon::current_num_threads();
    let decompose = |a: &Tensor<2>| match is_f64(a) {
        true => Ok(EitherPrecision::F64(decompose(HostMatrix::<f64>::read(a)?, Par::Seq)?)),
        false => Ok(EitherPrecision::F32(decompose(HostMatrix::<f32>::read(a)?, Par::Seq)?)),
    };
    let mut results = Vec::with_capacity(matrices.len());
    for window in matrices.chunks(window) {
        let factors: Vec<Result<_, LinalgError>> = window.par_iter().map(decompose).collect();
        // Uploads stay on the calling thread, whose stream the tensors belong to.
        results.extend(window.iter().zip(factors).map(|(a, factors)| {
            let device = inner_device(a);
            Ok(match factors? {
                EitherPrecision::F32(factors) => factors.upload(&device),
                EitherPrecision::F64(factors) => factors.upload(&device),
            })
        }));
    }
    results
}

/// The factors `Q` of a batch `[b, n, m]`, `n >= m`, in f64, returned in the dtype of `x`.
pub(crate) fn orthogonal_factors(x: &Tensor<3>) -> Result<Tensor<3>, LinalgError> {
    let [batch, n, m] = x.dims();
    let device = inner_device(x);
    let read = |x: Tensor<3>| HostMatrix::<f64>::read(&x.reshape([n, m]));
    let hosts = x.clone().split(1, 0).into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let factor = |host: &HostMatrix<f64>| positive_diagonal(&host.mat, Par::Seq).0;
    let factors: Vec<_> = hosts.par_iter().map(factor).collect();
    let entries: Vec<f64> = factors.iter().flat_map(|q| row_major(q.as_ref())).collect();
    Ok(upload_entries(entries, [batch, n, m], x.dtype(), &device))
}

struct Factors<T> {
    q: Mat<T>,
    /// Row by row.
    r: Vec<T>,
    cols: usize,
}

impl<T: Real> Factors<T> {
    fn upload(self, device: &Device) -> (Tensor<2>, Tensor<2>) {
        let shape = [self.q.ncols(), self.cols];
        let q = upload_matrix(self.q.as_ref(), device);
        (q, upload_vector(self.r, device).reshape(shape))
    }
}

fn decompose<T: Real>(a: HostMatrix<T>, par: Par) -> Result<Factors<T>, LinalgError> {
    let (q, r) = positive_diagonal(&a.mat, par);
    let r = a.rescale(row_major(r.as_ref()).into_iter())?;
    Ok(Factors { q, r, cols: a.mat.ncols() })
}

/// The thin QR decomposition with a non-negative diagonal of `R`.
fn positive_diagonal<T: Real>(a: &Mat<T>, par: Par) -> (Mat<T>, Mat<T>) {
    let householder = Householder::new(a.as_ref(), par);
    let (mut q, mut r) = (householder.q(), householder.r());
    for i in 0..q.ncols() {
        if r[(i, i)].to_f64() < 0.0 {
            q.col_mut(i).iter_mut().for_each(|entry| *entry = -*entry);
            r.row_mut(i).iter_mut().for_each(|entry| *entry = -*entry);
        }
    }
    (q, r)
}
