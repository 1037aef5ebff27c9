//! Attention, one block of queries at a time.
//!
//! The scores of a block stay in the cache in both passes, and no other scores exist (Dao et al.,
//! FlashAttention, arXiv 2205.14135). Rows are whole, without running maxima. Heads are read and written in
//! place, as slices of the width.

use burn::backend::Flex;
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use faer::{Accum, MatRef};

use super::matrices::{
    Matrices, multiply, rows_of, rows_of_mut, spaced_rows_of_mut, with_readable_matrices,
};
use super::parallel::{for_each_task, with_scratch};
use super::simd::{exp, max, sum, sum_of_pairs, vectorized};
use super::tensor::{FlexTensor, from_values};

/// The number of scores of a block, unless that is less than [`MIN_QUERIES`] queries.
const SCORES_PER_BLOCK: usize = 1 << 15;
/// A product with fewer rows than this is slow.
const MIN_QUERIES: usize = 16;

/// The attention `softmax(scale q k') v` for `[b, heads, n, d]` and `[b, heads, m, d]`.
pub(super) fn forward(q: FlexTensor, k: FlexTensor, v: FlexTensor, scale: f32) -> FlexTensor {
    let ([batch, heads, n, d], m) = (q.shape().dims(), k.shape()[2]);
    let [q, k, v] = [q, k, v].map(with_readable_matrices);
    let [q, k, v] = [&q, &k, &v].map(Matrices::of);
    let mut out = vec![0.0; batch * n * heads * d];
    let width = heads * d;
    let mut tasks = Vec::new();
    for (sample, out) in out.chunks_mut(n * width).enumerate() {
        for (block, out) in out.chunks_mut(queries_per_block(n, m) * width).enumerate() {
            tasks.push((sample, block * queries_per_block(n, m), out));
        }
    }
    for_each_task(tasks, 2 * batch * n * m * width, |(sample, first, out)| {
        let rows = out.len() / width;
        with_scratch([rows * m, rows], |[scores, norms]| {
            for head in 0..heads {
                let i = sample * heads + head;
                let queries = q.get(i).subrows(first, rows);
                softmax(scores, norms, queries, k.get(i), scale);
                let weights = rows_of(scores, rows, m);
                let part = spaced_rows_of_mut(&mut out[head * d..], rows, d, width);
                multiply(part, Accum::Replace, 1.0, weights, v.get(i));
                for (row, norm) in out.chunks_mut(width).zip(norms.iter()) {
                    for x in &mut row[head * d..][..d] {
                        *x *= norm;
                    }
                }
            }
        });
    });
    // The output projection reads [b, n, heads, d] without a copy.
    Flex::float_swap_dims(from_values(out, [batch, n, heads, d]), 1, 2)
}

/// The gradients of [`forward`] by q, k and v from the gradient `grad` of its value.
pub(super) fn gradient(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    grad: FlexTensor,
    scale: f32,
) -> [FlexTensor; 3] {
    let ([batch, heads, n, d], m) = (q.shape().dims(), k.shape()[2]);
    let [q, k, v, grad] = [q, k, v, grad].map(with_readable_matrices);
    let [q, k, v, grad] = [&q, &k, &v, &grad].map(Matrices::of);
    let [mut dq, mut dk, mut dv] = [n, m, m].map(|rows| vec![0.0; batch * heads * rows * d]);
    let each = dq.chunks_mut(n * d).zip(dk.chunks_mut(m * d)).zip(dv.chunks_mut(m * d));
    let tasks = each.enumerate().collect();
    for_each_task(tasks, 5 * batch * heads * n * m * d, |(i, ((dq, dk), dv))| {
        let rows = queries_per_block(n, m);
        with_scratch([rows * m, rows * m, rows], |[weights, slopes, norms]| {
            for (block, dq) in dq.chunks_mut(rows * d).enumerate() {
                let (first, rows) = (block * rows, dq.len() / d);
                let (p, dp) = (&mut weights[..rows * m], &mut slopes[..rows * m]);
                let queries = q.get(i).subrows(first, rows);
                let grad = grad.get(i).subrows(first, rows);
                softmax(p, &mut norms[..rows], queries, k.get(i), scale);
                let values = v.get(i).transpose();
                multiply(rows_of_mut(dp, rows, m), Accum::Replace, 1.0, grad, values);
                vectorized(
                    #[inline(always)]
                    || {
                        let each = p.chunks_mut(m).zip(dp.chunks_mut(m)).zip(norms.iter());
                        for ((p, dp), norm) in each {
                            for p in p.iter_mut() {
                                *p *= norm;
                            }
                            let mean = sum_of_pairs(p, dp, |p, dp| p * dp) as f32;
                            for (p, dp) in p.iter().zip(dp) {
                                *dp = p * (*dp - mean);
                            }
                        }
                    },
                );
                let (p, ds) = (rows_of(p, rows, m), rows_of(dp, rows, m));
                multiply(rows_of_mut(dq, rows, d), Accum::Replace, scale, ds, k.get(i));
                multiply(rows_of_mut(dk, m, d), Accum::Add, scale, ds.transpose(), queries);
                multiply(rows_of_mut(dv, m, d), Accum::Add, 1.0, p.transpose(), grad);
            }
        });
    });
    let shape = |rows| [batch, heads, rows, d];
    [from_values(dq, shape(n)), from_values(dk, shape(m)), from_values(dv, shape(m))]
}

/// The number of queries of a block.
fn queries_per_block(queries: usize, keys: usize) -> usize {
    (SCORES_PER_BLOCK / keys).clamp(MIN_QUERIES, 256).min(queries)
}

/// Computes `exp(s - max s)` of the rows of `s = scale q k'`, and the inverse sum of each row.
fn softmax(
    scores: &mut [f32],
    norms: &mut [f32],
    q: MatRef<'_, f32>,
    k: MatRef<'_, f32>,
    scale: f32,
) {
    let (rows, keys) = (q.nrows(), k.nrows());
    multiply(rows_of_mut(scores, rows, keys), Accum::Replace, scale, q, k.transpose());
    vectorized(
        #[inline(always)]
        || {
            for row in scores.chunks_mut(keys) {
                let row_max = max(row);
                for s in row {
                    *s -= row_max;
                }
            }
            // One loop over all rows: the length of a row is seldom a multiple of a vector.
            for s in scores.iter_mut() {
                *s = exp(*s);
            }
            for (row, norm) in scores.chunks(keys).zip(norms) {
                *norm = (sum(row, |p| p) as f32).recip();
            }
        },
    );
}
