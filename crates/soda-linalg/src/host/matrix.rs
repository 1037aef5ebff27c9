//! A finite matrix on the host, scaled near 1.

use burn::tensor::Tensor;
use faer::{ColMut, Mat, MatRef};

use super::real::Real;
use crate::error::LinalgError;

/// A finite, non-empty matrix on the host: the input is `scale * mat`, and `max |mat| < 1`.
pub(crate) struct HostMatrix<T> {
    pub(super) mat: Mat<T>,
    pub(super) scale: f64,
}

impl<T: Real> HostMatrix<T> {
    /// Reads `a` from any device, with or without autodiff.
    pub(crate) fn read(a: &Tensor<2>) -> Result<Self, LinalgError> {
        let [rows, cols] = a.dims();
        if rows == 0 || cols == 0 {
            return Err(LinalgError::Empty { rows, cols });
        }
        let entries: Vec<T> = a.clone().without_autodiff().try_into_vec_as()?;
        let mut max: f64 = 0.0;
        for (index, entry) in entries.iter().enumerate() {
            let value = entry.to_f64();
            if !value.is_finite() {
                let (row, col) = (index / cols, index % cols);
                return Err(LinalgError::NotFinite { row, col, value, rows, cols });
            }
            max = max.max(value.abs());
        }
        let scale = power_of_two_above(max);
        let view = MatRef::from_row_major_slice(&entries, rows, cols);
        // Divided in f64, because 1 / scale overflows f32 if the entries are subnormal.
        let mat = Mat::from_fn(rows, cols, |i, j| T::from_f64(view[(i, j)].to_f64() / scale));
        Ok(Self { mat, scale })
    }

    /// Multiplies `values` by the input's scale; an error if one leaves the range of `T`.
    pub(super) fn rescale(&self, values: impl Iterator<Item = T>) -> Result<Vec<T>, LinalgError> {
        let values: Vec<T> = values.map(|value| T::from_f64(value.to_f64() * self.scale)).collect();
        if values.iter().all(|value| value.to_f64().is_finite()) {
            Ok(values)
        } else {
            let (rows, cols) = self.mat.shape();
            Err(LinalgError::Overflow { rows, cols })
        }
    }

    /// The error of an iteration that did not converge on this matrix.
    pub(crate) fn no_convergence(&self) -> LinalgError {
        let (rows, cols) = self.mat.shape();
        LinalgError::NoConvergence { rows, cols }
    }
}

impl HostMatrix<f64> {
    /// The determinant of the scaled matrix, which has the sign of the input's.
    pub(crate) fn scaled_determinant(&self) -> f64 {
        self.mat.determinant()
    }
}

/// The sign convention of singular vectors and eigenvectors: the entry of largest magnitude is positive.
///
/// Negates `vector` and its partner if the first of the largest entries of `vector` is negative.
pub(super) fn make_largest_positive<T: Real>(
    vector: ColMut<'_, T>,
    partner: Option<ColMut<'_, T>>,
) {
    let mut largest: f64 = 0.0;
    for entry in vector.as_ref().iter().map(|entry| entry.to_f64()) {
        if entry.abs() > largest.abs() {
            largest = entry;
        }
    }
    if largest < 0.0 {
        let partner = partner.into_iter().flat_map(|partner| partner.iter_mut());
        vector.iter_mut().chain(partner).for_each(|entry| *entry = -*entry);
    }
}

/// The smallest power of two above `max`, clamped to exponents whose inverse is a finite f64.
fn power_of_two_above(max: f64) -> f64 {
    if max == 0.0 { 1.0 } else { 2f64.powi((max.log2().floor() as i32 + 1).clamp(-1000, 1000)) }
}
