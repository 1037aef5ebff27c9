//! Tensors as slices, slices as matrices, and work on several threads.

use std::cell::Cell;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{DType, Shape, TensorData};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// A tensor of the CPU backend.
pub(super) type Flat = FloatTensor<Flex>;

/// Whether all of them hold what these kernels compute in.
pub(super) fn single(tensors: &[&Flat]) -> bool {
    tensors.iter().all(|x| x.dtype() == DType::F32 && x.shape().num_elements() > 0)
}

/// The numbers in order, of a tensor that is in order.
///
/// # Panics
/// Where it is not; `to_contiguous` makes it so.
pub(super) fn values(x: &Flat) -> &[f32] {
    x.as_slice().expect("a contiguous tensor of float32")
}

pub(super) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Flat {
    Flat::from_data(TensorData::new(values, shape.into()))
}

/// Fewer multiplications or some such than this are done before another thread has woken up.
const WORTH_A_THREAD: usize = 1 << 17;

/// Does all tasks, which are `work` multiplications together, on the threads of the current pool if that is worth it.
pub(super) fn run<T: Send>(tasks: Vec<T>, work: usize, f: impl Fn(T) + Send + Sync) {
    if tasks.len() == 1 || work < WORTH_A_THREAD || rayon::current_num_threads() == 1 {
        tasks.into_iter().for_each(f);
    } else {
        tasks.into_par_iter().for_each(f);
    }
}

/// How many of `rows` a task has, where the threads of the pool share them and one row is `work`.
pub(super) fn rows_a_task(rows: usize, work: usize) -> usize {
    let threads = rayon::current_num_threads();
    if threads == 1 { rows } else { rows.div_ceil(threads).max(WORTH_A_THREAD / 4 / work.max(1)) }
}

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Lends `N` slices of these lengths, which hold anything. They are the thread's own and stay allocated.
pub(super) fn scratch<const N: usize, R>(
    lengths: [usize; N],
    f: impl FnOnce([&mut [f32]; N]) -> R,
) -> R {
    let mut all = SCRATCH.take();
    let total = lengths.iter().sum();
    if all.len() < total {
        all.resize(total, 0.0);
    }
    let mut rest = &mut all[..];
    let parts = lengths.map(|length| {
        let (part, others) = std::mem::take(&mut rest).split_at_mut(length);
        rest = others;
        part
    });
    let result = f(parts);
    SCRATCH.set(all);
    result
}

/// `c = alpha a b`, or `c + alpha a b`, on this thread.
pub(super) fn multiply(
    c: MatMut<'_, f32>,
    add: Accum,
    alpha: f32,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
) {
    matmul(c, add, a, b, alpha, Par::Seq);
}

/// A matrix whose rows lie one after the other.
pub(super) fn rows_of(values: &[f32], rows: usize, cols: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(values, rows, cols)
}

/// The same, to write to.
pub(super) fn rows_of_mut(values: &mut [f32], rows: usize, cols: usize) -> MatMut<'_, f32> {
    MatMut::from_row_major_slice_mut(values, rows, cols)
}

/// The same with rows that begin `stride` apart; `values` begins with the first and may go on after the last.
pub(super) fn spaced_rows_of_mut(
    values: &mut [f32],
    rows: usize,
    cols: usize,
    stride: usize,
) -> MatMut<'_, f32> {
    let values = &mut values[..(rows - 1) * stride + cols];
    MatMut::from_column_major_slice_with_stride_mut(values, cols, rows, stride).transpose_mut()
}

/// The matrices of the last two axes of a tensor, where they lie.
pub(super) struct Matrices<'a> {
    values: &'a [f32],
    starts: Vec<usize>,
    rows: usize,
    cols: usize,
    /// Between the beginnings of rows; of columns, if they are what lies together.
    stride: usize,
    by_columns: bool,
}

impl<'a> Matrices<'a> {
    /// Of a tensor that [`with_matrices`] made.
    ///
    /// # Panics
    /// Of another whose matrices have neither rows nor columns that lie together.
    pub(super) fn of(x: &'a Flat) -> Self {
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
        let (stride, by_columns) = together(x).expect("rows or columns that lie together");
        Self {
            values: x.storage(),
            starts,
            rows: shape[lead],
            cols: shape[lead + 1],
            stride,
            by_columns,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// Matrix `i`.
    pub(super) fn get(&self, i: usize) -> MatRef<'a, f32> {
        let (major, minor) =
            if self.by_columns { (self.cols, self.rows) } else { (self.rows, self.cols) };
        let values = &self.values[self.starts[i]..][..(major - 1) * self.stride + minor];
        let columns =
            MatRef::from_column_major_slice_with_stride(values, minor, major, self.stride);
        if self.by_columns { columns } else { columns.transpose() }
    }
}

/// `x`, copied if its matrices have neither rows nor columns that lie together.
pub(super) fn with_matrices(x: Flat) -> Flat {
    if together(&x).is_some() { x } else { x.to_contiguous() }
}

/// The distance of rows, or of columns (true), that lie together.
fn together(x: &Flat) -> Option<(usize, bool)> {
    let layout = x.layout();
    let (shape, strides) = (layout.shape(), layout.strides());
    let lead = shape.num_dims() - 2;
    if strides.iter().any(|&stride| stride < 0) {
        return None;
    }
    let [rows, cols] = [shape[lead], shape[lead + 1]];
    let [row, col] = [strides[lead], strides[lead + 1]].map(isize::unsigned_abs);
    // The stride of an axis of one says nothing.
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
