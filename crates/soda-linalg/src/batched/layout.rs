//! A parameter of any rank as a batch of tall matrices: `[..., n, m]` as `[b, n, m]` with `n >= m`.

use burn::tensor::{DType, Tensor};
use soda_kernels::with_stride_order;

/// How a parameter of rank `D` is laid out as a batch of tall matrices, and back.
///
/// Leading axes are the batch. A wide matrix is transposed, so that its rows become the orthonormal columns.
/// A vector is one column, whose manifold is the sphere.
#[derive(Clone, Copy, Debug)]
pub struct BatchLayout<const D: usize> {
    dims: [usize; D],
    dtype: DType,
    wide: bool,
    /// The number of matrices.
    pub(crate) batch: usize,
    /// The number of rows of each matrix, its larger side.
    pub(crate) n: usize,
    /// The number of columns of each matrix.
    pub(crate) m: usize,
}

impl<const D: usize> BatchLayout<D> {
    /// The layout of `tensor`.
    pub(crate) fn from_tensor(tensor: &Tensor<D>) -> Self {
        let dims = tensor.dims();
        let (batch, rows, cols) = match dims[..] {
            [] => (1, 1, 1),
            [n] => (1, n, 1),
            [ref batch @ .., rows, cols] => (batch.iter().product(), rows, cols),
        };
        let wide = rows < cols;
        let (n, m) = (rows.max(cols), rows.min(cols));
        Self { dims, dtype: tensor.dtype(), wide, batch, n, m }
    }

    /// Whether the tensor has no entries.
    pub(crate) fn is_empty(&self) -> bool {
        self.batch * self.n * self.m == 0
    }

    /// The dtype of the arithmetic: f64 for an f64 parameter, f32 for all others.
    pub(crate) fn compute_dtype(&self) -> DType {
        if self.dtype == DType::F64 { DType::F64 } else { DType::F32 }
    }

    /// Lays out `[..., n, m]` as `[b, n, m]` in [`BatchLayout::compute_dtype`].
    ///
    /// The result has row-major strides, so that every run gives the same bits ([`with_stride_order`]).
    pub(crate) fn flatten(&self, tensor: Tensor<D>) -> Tensor<3> {
        let tensor = tensor.cast(self.compute_dtype());
        if self.wide {
            with_stride_order(tensor.reshape([self.batch, self.m, self.n]).transpose(), [0, 1, 2])
        } else {
            tensor.reshape([self.batch, self.n, self.m])
        }
    }

    /// The inverse of [`BatchLayout::flatten`], in the parameter's shape and dtype.
    ///
    /// The result has row-major strides, as a tensor that was read from a file.
    pub(crate) fn unflatten(&self, batch: Tensor<3>) -> Tensor<D> {
        let batch = if self.wide { batch.transpose() } else { batch };
        with_stride_order(batch, [0, 1, 2]).reshape(self.dims).cast(self.dtype)
    }

    /// Lays out `[..., m, m]` as `[b, m, m]`.
    pub(crate) fn flatten_square(&self, tensor: Tensor<D>) -> Tensor<3> {
        tensor.reshape([self.batch, self.m, self.m])
    }

    /// The inverse of [`BatchLayout::flatten_square`], with row-major strides.
    ///
    /// An optimizer's state has the rank of its parameter.
    pub(crate) fn unflatten_square(&self, batch: Tensor<3>) -> Tensor<D> {
        let mut dims = self.dims;
        match &mut dims[..] {
            [.., rows, cols] => (*rows, *cols) = (self.m, self.m),
            [n] => *n = self.m,
            [] => {}
        }
        with_stride_order(batch, [0, 1, 2]).reshape(dims)
    }

    /// Gives one number for each matrix, `[b, 1, 1]`, the rank of the parameter: `[..., 1, 1]`.
    pub(crate) fn unflatten_scalar(&self, batch: Tensor<3>) -> Tensor<D> {
        let mut dims = self.dims;
        dims.iter_mut().rev().take(2).for_each(|dim| *dim = 1);
        batch.reshape(dims)
    }
}
