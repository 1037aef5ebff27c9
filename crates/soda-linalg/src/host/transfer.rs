//! Uploads of host results to the device of their input.

use burn::tensor::{DType, Device, Tensor, TensorData};
use faer::MatRef;

use super::real::Real;

/// The device of `a` without autodiff: the factors of a decomposition are constants.
pub(crate) fn inner_device<const D: usize>(a: &Tensor<D>) -> Device {
    a.device().without_autodiff()
}

/// Uploads a matrix.
pub(super) fn upload_matrix<T: Real>(mat: MatRef<'_, T>, device: &Device) -> Tensor<2> {
    let (rows, cols) = mat.shape();
    let entries = row_major(mat);
    Tensor::from_data(TensorData::new(entries, [rows, cols]), (device, T::dtype()))
}

/// Uploads a vector.
pub(super) fn upload_vector<T: Real>(entries: Vec<T>, device: &Device) -> Tensor<1> {
    let len = entries.len();
    Tensor::from_data(TensorData::new(entries, [len]), (device, T::dtype()))
}

/// Uploads row-major entries that were computed in f64, rounded to `dtype`.
pub(crate) fn upload_entries<const D: usize>(
    entries: Vec<f64>,
    shape: [usize; D],
    dtype: DType,
    device: &Device,
) -> Tensor<D> {
    // Converted on the host, because the device may not support f64.
    let data = TensorData::new(entries, shape).convert_dtype(dtype);
    Tensor::from_data(data, (device, dtype))
}

/// The entries of a matrix, row by row.
pub(super) fn row_major<T: Real>(mat: MatRef<'_, T>) -> Vec<T> {
    let mut entries = Vec::with_capacity(mat.nrows() * mat.ncols());
    for row in mat.row_iter() {
        entries.extend(row.iter().copied());
    }
    entries
}
