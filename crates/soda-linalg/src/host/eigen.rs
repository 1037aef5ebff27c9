//! Symmetric eigendecompositions on the host, by tridiagonalisation and divide and conquer.

use burn::tensor::{Tensor, TensorData, TensorReadError};
use faer::{Mat, Side};
use rayon::prelude::*;

use super::matrix::{HostMatrix, make_largest_positive};
use super::real::{Real, is_f64};
use super::transfer::{inner_device, upload_matrix, upload_vector};
use crate::error::LinalgError;

/// The ascending eigenvalues `[n]` and the eigenvectors `[n, n]` of a symmetric `a`, `[n, n]`.
pub(crate) fn symmetric(a: &Tensor<2>) -> Result<(Tensor<1>, Tensor<2>), LinalgError> {
    if is_f64(a) { symmetric_in::<f64>(a) } else { symmetric_in::<f32>(a) }
}

fn symmetric_in<T: Real>(a: &Tensor<2>) -> Result<(Tensor<1>, Tensor<2>), LinalgError> {
    let [rows, cols] = a.dims();
    if rows != cols {
        return Err(LinalgError::NotSquare { rows, cols });
    }
    let host = HostMatrix::<T>::read(a)?;
    for i in 0..rows {
        for j in 0..i {
            // Entries are below 1, so that an absolute difference is relative to the matrix.
            let difference = (host.mat[(i, j)].to_f64() - host.mat[(j, i)].to_f64()).abs();
            if difference > 16.0 * T::epsilon_impl().to_f64() {
                return Err(LinalgError::NotSymmetric { row: i, col: j, n: rows });
            }
        }
    }
    let eigen = host.mat.self_adjoint_eigen(Side::Lower).map_err(|_| host.no_convergence())?;
    let mut vectors = eigen.U().to_owned();
    for column in vectors.col_iter_mut() {
        make_largest_positive(column, None);
    }
    let values = host.rescale(eigen.S().column_vector().iter().copied())?;
    let device = inner_device(a);
    Ok((upload_vector(values, &device), upload_matrix(vectors.as_ref(), &device)))
}

/// `Qᵀ`, `[b, t, t]`, with `Q diag(λ) Qᵀ` the leading block of `sizes[i]` rows of each matrix `[b, t, t]`.
///
/// `λ` descends. Past the block `Qᵀ` is the identity, and so is the whole matrix if an entry is not finite.
pub(crate) fn leading_block_eigenvectors(
    h: &Tensor<3>,
    sizes: &[usize],
) -> Result<Tensor<3>, TensorReadError> {
    if is_f64(h) { leading_blocks_in::<f64>(h, sizes) } else { leading_blocks_in::<f32>(h, sizes) }
}

fn leading_blocks_in<T: Real>(
    h: &Tensor<3>,
    sizes: &[usize],
) -> Result<Tensor<3>, TensorReadError> {
    let [b, t, _] = h.dims();
    let entries = h.clone().try_to_vec_as::<T>()?;
    let eigenvectors = |(h, &size): (&[T], &usize)| -> Vec<T> {
        let block = Mat::from_fn(size, size, |i, j| h[i * t + j]);
        let eigen = block.self_adjoint_eigen(Side::Lower).ok();
        let identity = |i, j| if i == j { T::one_impl() } else { T::zero_impl() };
        let entry = |i, j| match &eigen {
            // faer's eigenvalues ascend.
            Some(eigen) if i < size && j < size => eigen.U()[(j, size - 1 - i)],
            _ => identity(i, j),
        };
        (0..t * t).map(|at| entry(at / t, at % t)).collect()
    };
    let found: Vec<Vec<T>> = entries.par_chunks(t * t).zip(sizes).map(eigenvectors).collect();
    let data = TensorData::new(found.concat(), [b, t, t]);
    Ok(Tensor::from_data(data, (&h.device(), h.dtype())))
}
