//! SwiGLU, the gate of the feed-forward layers, and its gradient.

use burn::backend::TensorMetadata;

use super::parallel::{for_each_task, rows_per_task};
use super::simd::{sigmoid, vectorized};
use super::tensor::{FlexTensor, from_values, values};

/// The approximate cost of one element in multiplications.
const WORK: usize = 24;

/// Computes `a s(a) b` for the halves `(a, b)` of the last axis.
pub(super) fn forward(x: &FlexTensor) -> FlexTensor {
    let mut shape = x.shape();
    let last = shape.num_dims() - 1;
    let half = shape[last] / 2;
    shape[last] = half;
    let x = x.to_contiguous();
    let x = values(&x);
    let mut y = vec![0.0; x.len() / 2];
    let rows = rows_per_task(y.len() / half, WORK * half);
    let tasks = x.chunks(2 * half * rows).zip(y.chunks_mut(half * rows)).collect();
    for_each_task(tasks, WORK * x.len() / 2, |(x, y)| {
        vectorized(
            #[inline(always)]
            || {
                for (x, y) in x.chunks(2 * half).zip(y.chunks_mut(half)) {
                    let (a, b) = x.split_at(half);
                    for ((a, b), y) in a.iter().zip(b).zip(y) {
                        *y = a * sigmoid(*a) * b;
                    }
                }
            },
        );
    });
    from_values(y, shape)
}

/// The gradient of [`forward`] by `x`.
pub(super) fn gradient(x: &FlexTensor, dy: &FlexTensor) -> FlexTensor {
    let shape = x.shape();
    let half = shape[shape.num_dims() - 1] / 2;
    let [x, dy] = [x, dy].map(FlexTensor::to_contiguous);
    let (x, dy) = (values(&x), values(&dy));
    let mut dx = vec![0.0; x.len()];
    let rows = rows_per_task(dy.len() / half, 2 * WORK * half);
    let size = 2 * half * rows;
    let tasks = x.chunks(size).zip(dy.chunks(size / 2)).zip(dx.chunks_mut(size)).collect();
    for_each_task(tasks, 2 * WORK * dy.len(), |((x, dy), dx)| {
        vectorized(
            #[inline(always)]
            || {
                let rows = x.chunks(2 * half).zip(dy.chunks(half)).zip(dx.chunks_mut(2 * half));
                for ((x, dy), dx) in rows {
                    let ((a, b), (da, db)) = (x.split_at(half), dx.split_at_mut(half));
                    for (((a, b), dy), (da, db)) in
                        a.iter().zip(b).zip(dy).zip(da.iter_mut().zip(db))
                    {
                        let s = sigmoid(*a);
                        *da = dy * b * s * (1.0 + a * (1.0 - s));
                        *db = dy * a * s;
                    }
                }
            },
        );
    });
    from_values(dx, shape)
}
