//! Matrix products by faer, which takes AVX-512 or AVX2 if the processor has them.

use burn::backend::TensorMetadata;
use faer::Accum;

use super::matrices::{Matrices, multiply, rows_of_mut, with_readable_matrices};
use super::parallel::{for_each_task, rows_per_task};
use super::tensor::{FlexTensor, from_values};

/// The product `lhs rhs` for `[.., m, k]` and `[.., k, n]` with equal leading sizes.
pub(super) fn matmul(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor {
    let mut shape = lhs.shape();
    let last = shape.num_dims() - 1;
    let (rows, depth, cols) = (shape[last - 1], shape[last], rhs.shape()[last]);
    shape[last] = cols;
    let (lhs, rhs) = (with_readable_matrices(lhs), with_readable_matrices(rhs));
    let (a, b) = (Matrices::of(&lhs), Matrices::of(&rhs));
    let mut out = vec![0.0; shape.num_elements()];
    let rows_at_once = rows_per_task(a.len() * rows, depth * cols).min(rows);
    let mut tasks = Vec::new();
    for (i, out) in out.chunks_mut(rows * cols).enumerate() {
        for (part, out) in out.chunks_mut(rows_at_once * cols).enumerate() {
            tasks.push((i, part * rows_at_once, out));
        }
    }
    for_each_task(tasks, a.len() * rows * depth * cols, |(i, first, out)| {
        let rows = out.len() / cols;
        let a = a.get(i).subrows(first, rows);
        multiply(rows_of_mut(out, rows, cols), Accum::Replace, 1.0, a, b.get(i));
    });
    from_values(out, shape)
}
