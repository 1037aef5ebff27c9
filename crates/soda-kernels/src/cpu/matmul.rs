//! Matrix products by faer, which takes AVX-512 or AVX2 if the processor has them.

use burn::backend::TensorMetadata;
use faer::Accum;

use super::matrices::{Matrices, multiply, rows_of_mut, with_readable_matrices};
use super::parallel::{for_each_task, rows_per_task};
use super::tensor::{FlexTensor, from_values};

/// Tasks begin at multiples of this number of rows. faer's kernels take up to eight rows at once, and
/// different numbers of rows add in a different order.
const ROW_UNIT: usize = 16;
/// The number of multiplications up to which faer takes other kernels, for small matrices.
const SMALL_WORK: usize = 16 * 16 * 16;

/// The product `lhs rhs` for `[.., m, k]` and `[.., k, n]` with equal leading sizes.
pub(super) fn matmul(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor {
    let mut shape = lhs.shape();
    let last = shape.num_dims() - 1;
    let (rows, depth, cols) = (shape[last - 1], shape[last], rhs.shape()[last]);
    shape[last] = cols;
    let (lhs, rhs) = (with_readable_matrices(lhs), with_readable_matrices(rhs));
    let (a, b) = (Matrices::of(&lhs), Matrices::of(&rhs));
    let mut out = vec![0.0; shape.num_elements()];
    let rows_at_once =
        rows_per_task(a.len() * rows, depth * cols).next_multiple_of(ROW_UNIT).min(rows);
    let least_rows = ROW_UNIT.max(SMALL_WORK / (depth * cols).max(1) + 1);
    let mut tasks = Vec::new();
    for (i, out) in out.chunks_mut(rows * cols).enumerate() {
        let (mut first, mut rest) = (0, out);
        while !rest.is_empty() {
            let left = rows - first;
            // A short end stays with the rows before it, so that every row is computed by the kernel that
            // computes it in one task. The number of threads then changes no bit.
            let taken = if left < rows_at_once + least_rows { left } else { rows_at_once };
            let (part, others) = rest.split_at_mut(taken * cols);
            tasks.push((i, first, part));
            (first, rest) = (first + taken, others);
        }
    }
    for_each_task(tasks, a.len() * rows * depth * cols, |(i, first, out)| {
        let rows = out.len() / cols;
        let a = a.get(i).subrows(first, rows);
        multiply(rows_of_mut(out, rows, cols), Accum::Replace, 1.0, a, b.get(i));
    });
    from_values(out, shape)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use burn::tensor::Shape;
    use rayon::ThreadPoolBuilder;

    use super::super::tensor::values;
    use super::*;

    /// A run must not depend on the number of cores, or a resumed run is not the run that never stopped.
    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let mut seed = 1_u32;
        let mut random = move || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        for [count, rows, depth, cols] in [
            [1, 64, 160, 160],
            [1, 65, 160, 160],
            [1, 160, 160, 160],
            [1, 161, 600, 70],
            [1, 3200, 8, 8],
            [1, 1001, 20, 10],
            [1, 33, 1100, 31],
            [1, 400, 40, 1],
            [3, 50, 64, 48],
            [2, 4096, 64, 5],
        ] {
            let mut tensor = |rows: usize, cols: usize| {
                let entries = (0..count * rows * cols).map(|_| random()).collect();
                from_values(entries, Shape::new([count, rows, cols]))
            };
            let (lhs, rhs) = (tensor(rows, depth), tensor(depth, cols));
            let product = |threads: usize| {
                let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let product = pool.install(|| matmul(lhs.clone(), rhs.clone()));
                let bits = values(&product).iter().map(|value| value.to_bits());
                bits.collect::<Vec<_>>()
            };
            let expected = product(1);
            for threads in [2, 3, 5, 8] {
                let sizes = [count, rows, depth, cols];
                assert!(product(threads) == expected, "{sizes:?} on {threads} threads");
            }
        }
    }
}
