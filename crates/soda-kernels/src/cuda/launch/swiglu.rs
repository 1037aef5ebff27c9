//! SwiGLU and its gradient (`swiglu.cu`).

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::sizes::blocks;
use crate::cuda::stream;
use crate::cuda::support::{empty, empty_like};

/// A part of the rows of a contiguous tensor, from the column `first` on.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) tensor: &'a CubeTensor,
    pub(super) first: usize,
}

impl<'a> Columns<'a> {
    fn all(tensor: &'a CubeTensor) -> Self {
        Self { tensor, first: 0 }
    }

    /// The number of rows.
    fn rows(self) -> usize {
        self.tensor.shape().num_elements() / self.step().max(1)
    }

    /// The distance of rows.
    fn step(self) -> usize {
        self.tensor.shape()[self.tensor.rank() - 1]
    }

    /// The bytes before the first column.
    fn offset(self) -> u64 {
        (self.first * self.tensor.dtype.size()) as u64
    }
}

/// SwiGLU of the last axis.
pub(crate) fn swiglu(x: CubeTensor) -> CubeTensor {
    let x = into_contiguous(x);
    let mut shape = x.shape().to_vec();
    let last = shape.len() - 1;
    shape[last] /= 2;
    let (half, y) = (shape[last], empty(&x, shape, x.dtype));
    forward_into(Columns::all(&x), Columns::all(&y), half);
    y
}

/// The gradient of [`swiglu`] by `x`.
pub(crate) fn gradient(x: CubeTensor, dy: CubeTensor) -> CubeTensor {
    let (x, dy) = (into_contiguous(x), into_contiguous(dy));
    let (half, dx) = (dy.shape()[dy.rank() - 1], empty_like(&x));
    gradient_into(Columns::all(&x), Columns::all(&dy), Columns::all(&dx), half);
    dx
}

/// Writes SwiGLU of halves of `half` columns of `x` to as many columns of `y`.
pub(super) fn forward_into(x: Columns, y: Columns, half: usize) {
    let name = kernel!("swiglu", x.tensor.dtype);
    let (offsets, rows) = ([x.offset(), y.offset()], x.rows());
    let sizes = [half, rows, x.step(), y.step()].map(|size| size as u64);
    stream::submit([x.tensor, y.tensor], move |context, [x, y]| {
        let tensors = [x + offsets[0], y + offsets[1]];
        let arguments = tensors.into_iter().chain(sizes).collect();
        context.launcher.launch(name, [blocks(half * rows), 1], 256, 0, arguments)
    });
}

/// Writes the gradient by halves of `half` columns of `x` to as many columns of `dx`.
pub(super) fn gradient_into(x: Columns, dy: Columns, dx: Columns, half: usize) {
    let name = kernel!("swiglu_gradient", x.tensor.dtype);
    let (offsets, rows) = ([x, dy, dx].map(Columns::offset), x.rows());
    let sizes = [half, rows, x.step(), dy.step(), dx.step()].map(|size| size as u64);
    stream::submit([x.tensor, dy.tensor, dx.tensor], move |context, [x, dy, dx]| {
        let tensors = [x + offsets[0], dy + offsets[1], dx + offsets[2]];
        let arguments = tensors.into_iter().chain(sizes).collect();
        context.launcher.launch(name, [blocks(half * rows), 1], 256, 0, arguments)
    });
}
