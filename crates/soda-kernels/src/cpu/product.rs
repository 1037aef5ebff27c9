//! Matrix products, by faer: AVX-512 or AVX2 where the processor has them.

use burn::backend::TensorMetadata;
use faer::Accum;

use super::dense::{
    Flat, Matrices, multiply, rows_a_task, rows_of_mut, run, tensor, with_matrices,
};

/// `lhs rhs` for `[.., m, k]` and `[.., k, n]` with the same leading sizes.
pub(super) fn product(lhs: Flat, rhs: Flat) -> Flat {
    let mut shape = lhs.shape();
    let last = shape.num_dims() - 1;
    let (rows, depth, cols) = (shape[last - 1], shape[last], rhs.shape()[last]);
    shape[last] = cols;
    let (lhs, rhs) = (with_matrices(lhs), with_matrices(rhs));
    let (a, b) = (Matrices::of(&lhs), Matrices::of(&rhs));
    let mut out = vec![0.0; shape.num_elements()];
    let at_once = rows_a_task(a.len() * rows, depth * cols).min(rows);
    let mut tasks = Vec::new();
    for (i, out) in out.chunks_mut(rows * cols).enumerate() {
        for (part, out) in out.chunks_mut(at_once * cols).enumerate() {
            tasks.push((i, part * at_once, out));
        }
    }
    run(tasks, a.len() * rows * depth * cols, |(i, first, out)| {
        let rows = out.len() / cols;
        let a = a.get(i).subrows(first, rows);
        multiply(rows_of_mut(out, rows, cols), Accum::Replace, 1.0, a, b.get(i));
    });
    tensor(out, shape)
}
