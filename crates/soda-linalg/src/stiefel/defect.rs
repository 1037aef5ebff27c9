//! How far a matrix is from the manifold.

use burn::tensor::Tensor;

use crate::error::LinalgError;

/// Refuses a start that is not orthonormal to `tolerance`: the optimizers keep a matrix on the
/// manifold, they are not meant to bring one there.
///
/// # Errors
///
/// If `max |XᵀX - I|` exceeds `tolerance`, or `x` cannot be read from its device.
pub fn check<const D: usize>(x: &Tensor<D>, tolerance: f64) -> Result<(), LinalgError> {
    let defect = defect(x)?;
    // A NaN is no smaller than the tolerance either.
    if defect <= tolerance {
        return Ok(());
    }
    let (rows, cols) = sides(&x.dims());
    Err(LinalgError::NotOrthonormal { rows, cols, defect })
}

/// `max |XᵀX - I|` (`|X Xᵀ - I|` if wide) over a batch `[..., n, m]`, computed in f64 on the host.
///
/// # Errors
///
/// If `x` cannot be read from its device.
pub fn defect<const D: usize>(x: &Tensor<D>) -> Result<f64, LinalgError> {
    let (rows, cols) = sides(&x.dims());
    let entries: Vec<f64> = x.clone().without_autodiff().try_into_vec_as()?;
    let (n, m) = (rows.max(cols), rows.min(cols));
    let mut defect: f64 = 0.0;
    for matrix in entries.chunks_exact((n * m).max(1)) {
        let at =
            |i: usize, j: usize| if rows < cols { matrix[j * n + i] } else { matrix[i * m + j] };
        for j in 0..m {
            for l in j..m {
                let dot: f64 = (0..n).map(|i| at(i, j) * at(i, l)).sum();
                let error = (dot - f64::from(j == l)).abs();
                // `max` would drop a NaN, found now or before.
                defect = if defect.is_nan() || defect >= error { defect } else { error };
            }
        }
    }
    Ok(defect)
}

fn sides(dims: &[usize]) -> (usize, usize) {
    match *dims {
        [] => (1, 1),
        [n] => (n, 1),
        [.., rows, cols] => (rows, cols),
    }
}
