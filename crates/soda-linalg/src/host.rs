//! From burn tensors to host matrices and back: the only file that decides in which precision and at
//! which scale a decomposition runs.
//!
//! f64 stays f64; f32 stays f32; half precisions are widened to f32, since eight bits of mantissa
//! carry no orthogonality worth the name. Each matrix is scaled by a power of two, which is exact,
//! so that its largest entry is near 1: squares of 1e30 overflow f32 and squares of 1e-30 vanish.

use burn::tensor::{DType, Device, Element, Tensor, TensorData};
use faer::traits::RealField;
use faer::{ColMut, Mat, MatRef};

use crate::error::LinalgError;

/// The two precisions of host arithmetic.
pub(crate) trait Real: RealField + Element + Copy + Send + Sync {
    fn to_double(self) -> f64;
    fn from_double(value: f64) -> Self;
}

impl Real for f32 {
    fn to_double(self) -> f64 {
        f64::from(self)
    }

    fn from_double(value: f64) -> Self {
        value as f32
    }
}

impl Real for f64 {
    fn to_double(self) -> f64 {
        self
    }

    fn from_double(value: f64) -> Self {
        value
    }
}

/// The same thing in one of the two precisions, in a batch that may hold both.
pub(crate) enum Precision<S, D> {
    Single(S),
    Double(D),
}

/// A finite, non-empty matrix on the host: the input is `scale * mat`, and `max |mat| < 1`.
pub(crate) struct Host<T> {
    pub(crate) mat: Mat<T>,
    pub(crate) scale: f64,
}

impl<T: Real> Host<T> {
    /// Reads `a`, which may be on any device, on the tape or off it.
    pub(crate) fn read(a: &Tensor<2>) -> Result<Self, LinalgError> {
        let [rows, cols] = a.dims();
        if rows == 0 || cols == 0 {
            return Err(LinalgError::Empty { rows, cols });
        }
        let entries: Vec<T> = a.clone().without_autodiff().try_into_vec_as()?;
        let mut max: f64 = 0.0;
        for (index, entry) in entries.iter().enumerate() {
            let value = entry.to_double();
            if !value.is_finite() {
                let (row, col) = (index / cols, index % cols);
                return Err(LinalgError::NotFinite { row, col, value, rows, cols });
            }
            max = max.max(value.abs());
        }
        let scale = power_of_two_above(max);
        let view = MatRef::from_row_major_slice(&entries, rows, cols);
        // In f64, because 1 / scale overflows f32 where the entries are subnormal.
        let mat = Mat::from_fn(rows, cols, |i, j| T::from_double(view[(i, j)].to_double() / scale));
        Ok(Self { mat, scale })
    }

    /// `values` at the input's scale, refused where they leave the range of `T`.
    pub(crate) fn rescale(&self, values: impl Iterator<Item = T>) -> Result<Vec<T>, LinalgError> {
        let values: Vec<T> =
            values.map(|value| T::from_double(value.to_double() * self.scale)).collect();
        if values.iter().all(|value| value.to_double().is_finite()) {
            Ok(values)
        } else {
            let (rows, cols) = self.mat.shape();
            Err(LinalgError::Overflow { rows, cols })
        }
    }

    /// The error for an iteration that gave up.
    pub(crate) fn no_convergence(&self) -> LinalgError {
        let (rows, cols) = self.mat.shape();
        LinalgError::NoConvergence { rows, cols }
    }
}

/// Whether a tensor of this dtype is decomposed in f64.
pub(crate) fn is_double<const D: usize>(a: &Tensor<D>) -> bool {
    a.dtype() == DType::F64
}

/// The device of `a` without autodiff: a decomposition is a constant.
pub(crate) fn plain_device<const D: usize>(a: &Tensor<D>) -> Device {
    a.device().without_autodiff()
}

/// Uploads a matrix.
pub(crate) fn matrix<T: Real>(mat: MatRef<'_, T>, device: &Device) -> Tensor<2> {
    let (rows, cols) = mat.shape();
    let entries = row_major(mat);
    Tensor::from_data(TensorData::new(entries, [rows, cols]), (device, T::dtype()))
}

/// Uploads entries computed in f64 in the dtype of what they were computed from.
pub(crate) fn entries_as<const D: usize>(
    entries: Vec<f64>,
    shape: [usize; D],
    dtype: DType,
    device: &Device,
) -> Tensor<D> {
    // Converted on the host: the device may have no f64.
    let data = TensorData::new(entries, shape).convert_dtype(dtype);
    Tensor::from_data(data, (device, dtype))
}

/// Uploads a vector.
pub(crate) fn vector<T: Real>(entries: Vec<T>, device: &Device) -> Tensor<1> {
    let len = entries.len();
    Tensor::from_data(TensorData::new(entries, [len]), (device, T::dtype()))
}

/// The entries of a matrix, row by row.
pub(crate) fn row_major<T: Real>(mat: MatRef<'_, T>) -> Vec<T> {
    let mut entries = Vec::with_capacity(mat.nrows() * mat.ncols());
    for row in mat.row_iter() {
        entries.extend(row.iter().copied());
    }
    entries
}

/// The sign rule of singular and eigenvectors: negates the vector, and its partner with it, if its
/// entry of largest magnitude (the first of equals) is negative.
pub(crate) fn make_largest_positive<T: Real>(
    vector: ColMut<'_, T>,
    partner: Option<ColMut<'_, T>>,
) {
    let mut largest: f64 = 0.0;
    for entry in vector.as_ref().iter().map(|entry| entry.to_double()) {
        if entry.abs() > largest.abs() {
            largest = entry;
        }
    }
    if largest < 0.0 {
        let partner = partner.into_iter().flat_map(|partner| partner.iter_mut());
        vector.iter_mut().chain(partner).for_each(|entry| *entry = -*entry);
    }
}

/// The smallest power of two above `max`, within what an f64 can invert.
fn power_of_two_above(max: f64) -> f64 {
    if max == 0.0 { 1.0 } else { 2f64.powi((max.log2().floor() as i32 + 1).clamp(-1000, 1000)) }
}
