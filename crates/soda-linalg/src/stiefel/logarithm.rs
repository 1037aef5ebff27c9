//! The logarithm of the canonical metric, and the distance it gives.

use burn::tensor::Tensor;

use crate::batched::BatchLayout;
use crate::error::LinalgError;
use crate::host::stiefel_logarithm::{Logarithms, logarithms};
use crate::host::{inner_device, upload_entries};

/// Returns the tangent at `x` whose canonical geodesic reaches `y` at time 1; all are `[..., n, m]`.
///
/// It is the inverse of [`geodesic`](super::geodesic()). The logarithm is computed in f64 on the host, by
/// Zimmermann's iteration (SIAM J. Matrix Anal. 2017); dtype and device are those of `x`.
///
/// # Errors
///
/// - [`LinalgError::ShapeMismatch`] if the shapes differ.
/// - [`LinalgError::NotFinite`] if an entry is NaN or infinite.
/// - [`LinalgError::NoLogarithm`] or [`LinalgError::NoConvergence`] if the points are too far apart: half a
///   turn in some plane, or, for square matrices, a reflection.
/// - [`LinalgError::Read`] if a tensor cannot be read from its device.
pub fn logarithm<const D: usize>(x: &Tensor<D>, y: &Tensor<D>) -> Result<Tensor<D>, LinalgError> {
    let layout = BatchLayout::from_tensor(x);
    let Some(Logarithms { tangents, .. }) = logarithms_of_pairs(&layout, x, y)? else {
        return Ok(x.clone());
    };
    let shape = [layout.batch, layout.n, layout.m];
    let dtype = layout.compute_dtype();
    Ok(layout.unflatten(upload_entries(tangents, shape, dtype, &inner_device(x))))
}

/// Returns the canonical distance of each pair of matrices of `x` and `y`, `[..., n, m]`, in the order of the
/// batch.
///
/// The distance is the canonical norm of [`logarithm()`].
///
/// # Errors
///
/// The errors of [`logarithm()`].
pub fn distance<const D: usize>(x: &Tensor<D>, y: &Tensor<D>) -> Result<Vec<f64>, LinalgError> {
    let layout = BatchLayout::from_tensor(x);
    Ok(logarithms_of_pairs(&layout, x, y)?.map_or_else(Vec::new, |pairs| pairs.lengths))
}

/// The logarithms of all pairs; `None` if the tensors have no entries.
fn logarithms_of_pairs<const D: usize>(
    layout: &BatchLayout<D>,
    x: &Tensor<D>,
    y: &Tensor<D>,
) -> Result<Option<Logarithms>, LinalgError> {
    if x.dims() != y.dims() {
        let (left, right) = (x.dims().to_vec(), y.dims().to_vec());
        return Err(LinalgError::ShapeMismatch { left, right });
    }
    if layout.is_empty() {
        return Ok(None);
    }
    logarithms(&layout.flatten(x.clone()), &layout.flatten(y.clone())).map(Some)
}
