//! The Stiefel manifold: matrices with orthonormal columns (rows, if wide).

use burn::tensor::{DType, Tensor};

use crate::error::LinalgError;

/// `max |XᵀX - I|` (`|X Xᵀ - I|` if wide) over a batch `[..., n, m]`, computed in f64 on the host.
///
/// # Errors
///
/// If `x` cannot be read from its device.
pub fn defect<const D: usize>(x: &Tensor<D>) -> Result<f64, LinalgError> {
    let dims = x.dims();
    let (rows, cols) = match dims[..] {
        [] => (1, 1),
        [n] => (n, 1),
        [.., rows, cols] => (rows, cols),
    };
    let entries: Vec<f64> = x.clone().without_autodiff().cast(DType::F32).try_into_vec_as()?;
    let (n, m) = (rows.max(cols), rows.min(cols));
    let mut defect: f64 = 0.0;
    for matrix in entries.chunks_exact((n * m).max(1)) {
        let at =
            |i: usize, j: usize| if rows < cols { matrix[j * n + i] } else { matrix[i * m + j] };
        for j in 0..m {
            for l in j..m {
                let dot: f64 = (0..n).map(|i| at(i, j) * at(i, l)).sum();
                let error = (dot - f64::from(j == l)).abs();
                // `max` would drop a NaN.
                defect = if error.is_nan() { error } else { defect.max(error) };
            }
        }
    }
    Ok(defect)
}
