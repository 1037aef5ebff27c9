//! Rotations along their geodesics: logarithm, exponential and real powers of one matrix.

use burn::tensor::Tensor;

use crate::error::LinalgError;
use crate::host::rotation as on_host;

/// Returns the power `Qᵗ = exp(t log Q)` of an orthogonal `[n, n]` matrix, for any real `t`.
///
/// `t = 0` gives the identity and `t = 1` gives `Q`. The power is computed in f64 on the host; dtype and
/// device are those of `q`. It is meaningful only if `q` is orthogonal.
///
/// # Errors
///
/// - [`LinalgError::NotSquare`], [`LinalgError::Empty`] or [`LinalgError::NotFinite`] if `q` is not square,
///   has no entries, or an entry is NaN or infinite.
/// - [`LinalgError::NoLogarithm`] if `q` reflects or rotates a plane by half a turn, within a thousandth of a
///   degree.
/// - [`LinalgError::Read`] if `q` cannot be read from its device.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use soda_linalg::rotation_power;
///
/// let quarter_turn = Tensor::<2>::from_data([[0.0, -1.0], [1.0, 0.0]], &Device::default());
/// let half: Vec<f32> = rotation_power(&quarter_turn, 0.5)?.try_to_vec_as()?;
/// assert!((half[0] - 0.5_f32.sqrt()).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn rotation_power(q: &Tensor<2>, t: f64) -> Result<Tensor<2>, LinalgError> {
    on_host::power(q, t)
}

/// Returns the principal logarithm of an orthogonal `[n, n]` matrix, a skew-symmetric `[n, n]` matrix.
///
/// The logarithm is computed in f64 on the host; dtype and device are those of `q`. It is meaningful only if
/// `q` is orthogonal.
///
/// # Errors
///
/// The errors of [`rotation_power`].
pub fn rotation_log(q: &Tensor<2>) -> Result<Tensor<2>, LinalgError> {
    on_host::logarithm(q)
}

/// Returns the exponential of an `[n, n]` matrix, a rotation if the matrix is skew-symmetric.
///
/// The exponential is computed in f64 on the host; dtype and device are those of `a`.
///
/// # Errors
///
/// - [`LinalgError::NotSquare`], [`LinalgError::Empty`] or [`LinalgError::NotFinite`] if `a` is not square,
///   has no entries, or an entry is NaN or infinite.
/// - [`LinalgError::Read`] if `a` cannot be read from its device.
pub fn rotation_exp(a: &Tensor<2>) -> Result<Tensor<2>, LinalgError> {
    on_host::exponential(a)
}
