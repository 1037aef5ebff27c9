//! The eigenvectors of a batch of symmetric matrices, by division of the spectrum level by level.
//!
//! A part is a set of rows of `Vᵀ` that span an invariant subspace. Each level divides every part in two,
//! until its eigenvalues are equal to rounding, or the host can diagonalise it.
//!
//! The parts of all matrices are divided together, in batches of one padded size. Small parts go to the host,
//! because a device would run many small products and wait for their launches.

use std::collections::BTreeMap;

use burn::tensor::{Device, Int, Tensor, TensorData, TensorReadError};
use soda_kernels::matmul;

use super::divide::divide;
use super::noise::noise;
use super::norms::epsilon;
use super::polar::polar_factor;
use crate::batched::symmetric_part;
use crate::host::eigen::leading_block_eigenvectors;

/// The largest number of rows of a part that the host diagonalises.
const MAX_HOST_ROWS: usize = 48;
/// The largest number of levels. A spectrum that halves from one eigenvalue to the next takes one level for
/// each.
const MAX_LEVELS: usize = 100;

/// Rows of the batch of `Vᵀ`, flattened to `[b n, n]`, that span an invariant subspace.
struct Part {
    first: usize,
    size: usize,
}

/// `Vᵀ`, `[b, n, n]`, with `H = V diag(λ) Vᵀ` for a batch of symmetric matrices.
///
/// `λ` descends to within `norm` times rounding; `norm` is `[b, 1, 1]`.
pub(super) fn eigenvectors(h: Tensor<3>, norm: Tensor<3>) -> Result<Tensor<3>, TensorReadError> {
    let ([b, n, _], device, eps) = (h.dims(), h.device(), epsilon(&h));
    // The first basis is unrelated to that of `H`, so that no part is orthogonal to its first columns.
    let mut vt = polar_factor(noise([n, n], &h), 8)?.expand([b, n, n]);
    let mut parts: Vec<Part> = (0..b).map(|i| Part { first: i * n, size: n }).collect();
    for _ in 0..MAX_LEVELS {
        parts.retain(|part| part.size > 1);
        if parts.is_empty() {
            break;
        }
        let rows = vt.clone().reshape([b * n, n]);
        let images = matmul(vt, h.clone()).reshape([b * n, n]);
        let mut groups = BTreeMap::<usize, Vec<Part>>::new();
        for part in parts.drain(..) {
            groups.entry(padded_size(part.size).max(MAX_HOST_ROWS)).or_default().push(part);
        }
        let mut next = NextRows::new(rows.clone());
        for (t, group) in groups {
            let picked = padded_rows(&group, t, &device);
            let pick =
                |x: &Tensor<2>| x.clone().select(0, picked.clone()).reshape([group.len(), t, n]);
            if t == MAX_HOST_ROWS {
                let sizes: Vec<usize> = group.iter().map(|part| part.size).collect();
                let diagonalised = diagonalise_on_host(pick(&rows), pick(&images), &sizes)?;
                next.push(diagonalised, group.iter().enumerate());
                continue;
            }
            let owners = group.iter().map(|part| (part.first / n) as i32).collect();
            let negligible = norm.clone().select(0, indices(owners, &device)).mul_scalar(2.0 * eps);
            let sizes: Vec<f64> = group.iter().map(|part| part.size as f64).collect();
            let (divided, above) = divide(pick(&rows), pick(&images), sizes, negligible)?;
            let is_divided = |(i, _): &(usize, &Part)| above[*i].is_some();
            next.push(divided, group.iter().enumerate().filter(is_divided));
            for (part, above) in group.iter().zip(&above) {
                let Some(above) = *above else { continue };
                parts.push(Part { first: part.first, size: above });
                parts.push(Part { first: part.first + above, size: part.size - above });
            }
        }
        vt = next.select(&device).reshape([b, n, n]);
    }
    Ok(vt)
}

/// The rows of the next `Vᵀ`: the old rows, and those that a level computed.
struct NextRows {
    /// The old rows `[b n, n]`, and the new rows of each group `[parts t, n]`.
    pool: Vec<Tensor<2>>,
    /// The number of rows in `pool`.
    pooled: usize,
    /// For each row of the next `Vᵀ`, its place in `pool`.
    source: Vec<i32>,
}

impl NextRows {
    fn new(rows: Tensor<2>) -> Self {
        let pooled = rows.dims()[0];
        Self { pool: vec![rows], pooled, source: (0..pooled as i32).collect() }
    }

    /// Adds the new rows `[parts, t, n]` of a group. `changed` are the parts whose rows they replace, by
    /// index.
    fn push<'a>(&mut self, rows: Tensor<3>, changed: impl Iterator<Item = (usize, &'a Part)>) {
        let [count, t, n] = rows.dims();
        self.pool.push(rows.reshape([count * t, n]));
        for (i, part) in changed {
            for row in 0..part.size {
                self.source[part.first + row] = (self.pooled + i * t + row) as i32;
            }
        }
        self.pooled += count * t;
    }

    fn select(self, device: &Device) -> Tensor<2> {
        Tensor::cat(self.pool, 0).select(0, indices(self.source, device))
    }
}

/// The indices of the rows of each part, padded to `t` by the part's first row.
fn padded_rows(parts: &[Part], t: usize, device: &Device) -> Tensor<1, Int> {
    let row = |part: &Part, i: usize| part.first + if i < part.size { i } else { 0 };
    let rows = parts.iter().flat_map(|part| (0..t).map(move |i| row(part, i) as i32));
    indices(rows.collect(), device)
}

/// The number of rows that a part of `size` rows is padded to; above 32 it is at most a seventh more.
fn padded_size(size: usize) -> usize {
    let power = size.next_power_of_two().max(4);
    if size <= 32 { power } else { size.next_multiple_of((power / 16).max(16)) }
}

/// Rotates the first `sizes` rows `[b, t, n]` of each part into eigenvectors, in descending order.
///
/// `images` are the products of the rows with `H`.
fn diagonalise_on_host(
    rows: Tensor<3>,
    images: Tensor<3>,
    sizes: &[usize],
) -> Result<Tensor<3>, TensorReadError> {
    let h = symmetric_part(matmul(images, rows.clone().transpose()));
    let rotations = leading_block_eigenvectors(&h, sizes)?;
    Ok(matmul(rotations, rows))
}

fn indices(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}
