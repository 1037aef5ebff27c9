//! A parameter of any rank as a stack of tall matrices: `[..., n, m]` to `[b, n, m]`, `n >= m`.
//!
//! Leading axes are a batch. A wide matrix is transposed: its rows are then what is orthonormal. A
//! vector is one column, so its manifold is the sphere.

use burn::tensor::{DType, Tensor};
use soda_kernels::in_order;

/// How one parameter folds into a stack and back.
#[derive(Clone, Copy)]
pub struct Stack<const D: usize> {
    dims: [usize; D],
    dtype: DType,
    wide: bool,
    /// Matrices in the stack.
    pub(crate) batch: usize,
    /// Rows of each, the larger side.
    pub(crate) n: usize,
    /// Columns of each.
    pub(crate) m: usize,
}

impl<const D: usize> Stack<D> {
    pub(crate) fn of(tensor: &Tensor<D>) -> Self {
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

    pub(crate) fn is_empty(&self) -> bool {
        self.batch * self.n * self.m == 0
    }

    /// The dtype of the arithmetic: that of the parameter, half precisions in f32.
    pub(crate) fn compute(&self) -> DType {
        if self.dtype == DType::F64 { DType::F64 } else { DType::F32 }
    }

    /// `[..., n, m]` to the stack `[b, n, m]`, which lies in the order of its shape: for the same bits in every run
    /// ([`in_order`]).
    pub(crate) fn fold(&self, tensor: Tensor<D>) -> Tensor<3> {
        let tensor = tensor.cast(self.compute());
        if self.wide {
            in_order(tensor.reshape([self.batch, self.m, self.n]).transpose(), [0, 1, 2])
        } else {
            tensor.reshape([self.batch, self.n, self.m])
        }
    }

    /// The inverse of [`Stack::fold`], in order as well: as it lies when it was read from a file.
    pub(crate) fn unfold(&self, stack: Tensor<3>) -> Tensor<D> {
        let stack = if self.wide { stack.transpose() } else { stack };
        in_order(stack, [0, 1, 2]).reshape(self.dims).cast(self.dtype)
    }

    /// `[..., m, m]` to `[b, m, m]`.
    pub(crate) fn fold_square(&self, tensor: Tensor<D>) -> Tensor<3> {
        tensor.reshape([self.batch, self.m, self.m])
    }

    /// The inverse of [`Stack::fold_square`], in order as [`Stack::unfold`]: the state of a parameter has the parameter's rank.
    pub(crate) fn unfold_square(&self, stack: Tensor<3>) -> Tensor<D> {
        let mut dims = self.dims;
        match &mut dims[..] {
            [.., rows, cols] => (*rows, *cols) = (self.m, self.m),
            [n] => *n = self.m,
            [] => {}
        }
        in_order(stack, [0, 1, 2]).reshape(dims)
    }

    /// `[b, 1, 1]` to `[..., 1, 1]`.
    pub(crate) fn unfold_scalar(&self, stack: Tensor<3>) -> Tensor<D> {
        let mut dims = self.dims;
        dims.iter_mut().rev().take(2).for_each(|dim| *dim = 1);
        stack.reshape(dims)
    }
}
