//! How far a matrix is from the manifold.

use burn::tensor::Tensor;

use crate::error::LinalgError;

/// Checks that `x`, `[..., n, m]`, is orthonormal to within `tolerance`.
///
/// The optimizers of [`crate::optim`] keep a matrix on the manifold; their parameters must start there.
///
/// # Errors
///
/// [`LinalgError::NotOrthonormal`] if [`orthogonality_error`] exceeds `tolerance` or is NaN, and
/// [`LinalgError::Read`] if `x` cannot be read from its device.
pub fn check_orthonormal<const D: usize>(x: &Tensor<D>, tolerance: f64) -> Result<(), LinalgError> {
    let error = orthogonality_error(x)?;
    // False for a NaN.
    if error <= tolerance {
        return Ok(());
    }
    let (rows, cols) = sides(&x.dims());
    Err(LinalgError::NotOrthonormal { rows, cols, error })
}

/// Returns `max |XᵀX - I|` (`max |X Xᵀ - I|` for wide matrices) over a batch `[..., n, m]`.
///
/// The error is computed in f64 on the host. It is NaN if an entry of `x` is, and 0 if `x` has no entries.
///
/// # Errors
///
/// [`LinalgError::Read`] if `x` cannot be read from its device.
pub fn orthogonality_error<const D: usize>(x: &Tensor<D>) -> Result<f64, LinalgError> {
    let (rows, cols) = sides(&x.dims());
    let entries: Vec<f64> = x.clone().without_autodiff().try_into_vec_as()?;
    let (n, m) = (rows.max(cols), rows.min(cols));
    let mut largest: f64 = 0.0;
    for matrix in entries.chunks_exact((n * m).max(1)) {
        let at =
            |i: usize, j: usize| if rows < cols { matrix[j * n + i] } else { matrix[i * m + j] };
        for j in 0..m {
            for l in j..m {
                let dot: f64 = (0..n).map(|i| at(i, j) * at(i, l)).sum();
                let error = (dot - f64::from(j == l)).abs();
                // `f64::max` would drop a NaN.
                largest = if largest.is_nan() || largest >= error { largest } else { error };
            }
        }
    }
    Ok(largest)
}

/// Rows and columns of each matrix; a vector is one column.
fn sides(dims: &[usize]) -> (usize, usize) {
    match *dims {
        [] => (1, 1),
        [n] => (n, 1),
        [.., rows, cols] => (rows, cols),
    }
}
