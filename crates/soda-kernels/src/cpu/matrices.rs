//! Slices and tensors as matrices, and their products by faer.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::tensor::FlexTensor;

/// Computes `alpha a b` or `c + alpha a b` in place of `c`, on this thread.
pub(super) fn multiply(
    c: MatMut<'_, f32>,
    add: Accum,
    alpha: f32,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
) {
    matmul(c, add, a, b, alpha, Par::Seq);
}

/// A row-major matrix.
pub(super) fn rows_of(values: &[f32], rows: usize, cols: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(values, rows, cols)
}

/// A mutable row-major matrix.
pub(super) fn rows_of_mut(values: &mut [f32], rows: usize, cols: usize) -> MatMut<'_, f32> {
    MatMut::from_row_major_slice_mut(values, rows, cols)
}

/// A mutable matrix whose rows begin `stride` elements apart. `values` starts with the first row and may be
/// longer.
pub(super) fn spaced_rows_of_mut(
    values: &mut [f32],
    rows: usize,
    cols: usize,
    stride: usize,
) -> MatMut<'_, f32> {
    let values = &mut values[..(rows - 1) * stride + cols];
    MatMut::from_column_major_slice_with_stride_mut(values, cols, rows, stride).transpose_mut()
}

/// The matrices of the last two axes of a tensor, without a copy.
pub(super) struct Matrices<'a> {
    values: &'a [f32],
    starts: Vec<usize>,
    rows: usize,
    cols: usize,
    /// The distance of two rows, or of two columns if `by_columns`.
    stride: usize,
    /// Whether columns are contiguous instead of rows.
    by_columns: bool,
}

impl<'a> Matrices<'a> {
    /// The matrices of a tensor that [`with_readable_matrices`] returned.
    ///
    /// # Panics
    /// If neither rows nor columns of the matrices are contiguous.
    pub(super) fn of(x: &'a FlexTensor) -> Self {
        let layout = x.layout();
        let (shape, strides) = (layout.shape(), layout.strides());
        let lead = shape.num_dims() - 2;
        let mut starts = vec![layout.start_offset()];
        for axis in 0..lead {
            let step = strides[axis].unsigned_abs();
            starts = starts
                .iter()
                .flat_map(|start| (0..shape[axis]).map(move |i| start + i * step))
                .collect();
        }
        let (stride, by_columns) = contiguous_axis(x).expect("contiguous rows or columns");
        Self {
            values: x.storage(),
            starts,
            rows: shape[lead],
            cols: shape[lead + 1],
            stride,
            by_columns,
        }
    }

    /// The number of matrices.
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// Matrix number `i`.
    pub(super) fn get(&self, i: usize) -> MatRef<'a, f32> {
        let (major, minor) =
            if self.by_columns { (self.cols, self.rows) } else { (self.rows, self.cols) };
        let values = &self.values[self.starts[i]..][..(major - 1) * self.stride + minor];
        let columns =
            MatRef::from_column_major_slice_with_stride(values, minor, major, self.stride);
        if self.by_columns { columns } else { columns.transpose() }
    }
}

/// Returns `x`, or a copy if neither rows nor columns of its matrices are contiguous.
pub(super) fn with_readable_matrices(x: FlexTensor) -> FlexTensor {
    if contiguous_axis(&x).is_some() { x } else { x.to_contiguous() }
}

/// The distance of two contiguous rows, or of two contiguous columns and `true`.
fn contiguous_axis(x: &FlexTensor) -> Option<(usize, bool)> {
    let layout = x.layout();
    let (shape, strides) = (layout.shape(), layout.strides());
    let lead = shape.num_dims() - 2;
    if strides.iter().any(|&stride| stride < 0) {
        return None;
    }
    let [rows, cols] = [shape[lead], shape[lead + 1]];
    let [row, col] = [strides[lead], strides[lead + 1]].map(isize::unsigned_abs);
    // The stride of an axis of size 1 carries no information.
    let row = if rows == 1 { row.max(cols) } else { row };
    let col = if cols == 1 { col.max(rows) } else { col };
    if (col == 1 || cols == 1) && row >= cols {
        Some((row, false))
    } else if (row == 1 || rows == 1) && col >= rows {
        Some((col, true))
    } else {
        None
    }
}
