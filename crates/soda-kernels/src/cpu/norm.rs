//! Group norm with an optional SiLU, layer norm, and their gradients. Each group or row is processed while it
//! is in the cache.

use std::ops::Range;

use burn::backend::TensorMetadata;

use super::parallel::{for_each_task, rows_per_task};
use super::simd::{sigmoid, sum, sum_of_pairs, vectorized};
use super::tensor::{FlexTensor, from_values, values};

/// The approximate cost of one element in multiplications.
const WORK: usize = 16;

/// The mean and the inverse standard deviation.
#[inline(always)]
fn statistics(x: &[f32], eps: f64) -> (f32, f32) {
    let mean = sum(x, |x| x) / x.len() as f64;
    let centre = mean as f32;
    let variance = sum(x, |x| (x - centre) * (x - centre)) / x.len() as f64;
    (centre, (variance + eps).sqrt().recip() as f32)
}

/// Group norm of `x` `[b, c, h, w]`, then SiLU if `silu`.
pub(super) fn group_norm(
    x: &FlexTensor,
    gamma: &FlexTensor,
    beta: &FlexTensor,
    groups: usize,
    eps: f64,
    silu: bool,
) -> FlexTensor {
    let [_, channels, height, width] = x.shape().dims();
    let [x_, gamma, beta] = [x, gamma, beta].map(FlexTensor::to_contiguous);
    let (x_, gamma, beta) = (values(&x_), values(&gamma), values(&beta));
    let (pixels, share) = (height * width, channels / groups);
    let mut y = vec![0.0; x_.len()];
    let tasks = x_.chunks(share * pixels).zip(y.chunks_mut(share * pixels)).enumerate().collect();
    for_each_task(tasks, WORK * x_.len(), |(i, (x, y))| {
        let first = i % groups * share;
        vectorized(
            #[inline(always)]
            || {
                let (mean, rstd) = statistics(x, eps);
                for (c, (x, y)) in x.chunks(pixels).zip(y.chunks_mut(pixels)).enumerate() {
                    let (gamma, beta) = (gamma[first + c] * rstd, beta[first + c]);
                    for (x, y) in x.iter().zip(y.iter_mut()) {
                        *y = (x - mean) * gamma + beta;
                    }
                    if silu {
                        for y in y {
                            *y *= sigmoid(*y);
                        }
                    }
                }
            },
        );
    });
    from_values(y, x.shape())
}

/// The gradient of [`group_norm`] by `x`.
pub(super) fn group_norm_gradient(
    x: &FlexTensor,
    dy: &FlexTensor,
    gamma: &FlexTensor,
    beta: &FlexTensor,
    groups: usize,
    eps: f64,
    silu: bool,
) -> FlexTensor {
    let [_, channels, height, width] = x.shape().dims();
    let [x_, dy, gamma, beta] = [x, dy, gamma, beta].map(FlexTensor::to_contiguous);
    let (x_, dy, gamma, beta) = (values(&x_), values(&dy), values(&gamma), values(&beta));
    let (pixels, share) = (height * width, channels / groups);
    let size = share * pixels;
    let mut dx = vec![0.0; x_.len()];
    let tasks = x_.chunks(size).zip(dy.chunks(size)).zip(dx.chunks_mut(size)).enumerate().collect();
    for_each_task(tasks, 2 * WORK * x_.len(), |(i, ((x, dy), dx))| {
        let first = i % groups * share;
        vectorized(
            #[inline(always)]
            || {
                let (mean, rstd) = statistics(x, eps);
                let maps = x.chunks(pixels).zip(dy.chunks(pixels)).zip(dx.chunks_mut(pixels));
                for (c, ((x, dy), g)) in maps.enumerate() {
                    let (gamma, beta) = (gamma[first + c], beta[first + c]);
                    if silu {
                        for ((x, dy), g) in x.iter().zip(dy).zip(g) {
                            let z = (x - mean) * (gamma * rstd) + beta;
                            let s = sigmoid(z);
                            *g = gamma * dy * (s + z * s * (1.0 - s));
                        }
                    } else {
                        for (dy, g) in dy.iter().zip(g) {
                            *g = gamma * dy;
                        }
                    }
                }
                input_gradient(dx, x, mean, rstd);
            },
        );
    });
    from_values(dx, x.shape())
}

/// Computes `rstd (g - mean(g) - xhat mean(g xhat))` in place of `g`.
#[inline(always)]
fn input_gradient(g: &mut [f32], x: &[f32], mean: f32, rstd: f32) {
    let count = g.len() as f64;
    let level = (sum(g, |g| g) / count) as f32;
    let along = (sum_of_pairs(g, x, |g, x| g * ((x - mean) * rstd)) / count) as f32;
    for (g, x) in g.iter_mut().zip(x) {
        *g = rstd * (*g - level - (x - mean) * rstd * along);
    }
}

/// Layer norm over the last axis of `x`, with scale and shift `[c]` or `[b, c]`.
pub(super) fn layer_norm(
    x: &FlexTensor,
    gamma: &FlexTensor,
    beta: &FlexTensor,
    eps: f64,
) -> FlexTensor {
    let [x_, gamma, beta] = [x, gamma, beta].map(FlexTensor::to_contiguous);
    let scales = Scales::of(&x_, &gamma);
    let (x_, gamma, beta) = (values(&x_), values(&gamma), values(&beta));
    let width = scales.width;
    let mut y = vec![0.0; x_.len()];
    let rows = rows_per_task(x_.len() / width, WORK * width);
    let size = width * rows;
    let tasks = x_.chunks(size).zip(y.chunks_mut(size)).enumerate().collect();
    for_each_task(tasks, WORK * x_.len(), |(task, (x, y))| {
        vectorized(
            #[inline(always)]
            || {
                for (row, (x, y)) in x.chunks(width).zip(y.chunks_mut(width)).enumerate() {
                    let of = scales.of_row(task * rows + row);
                    let (mean, rstd) = statistics(x, eps);
                    let affine = gamma[of.clone()].iter().zip(&beta[of]);
                    for ((x, y), (gamma, beta)) in x.iter().zip(y).zip(affine) {
                        *y = (x - mean) * rstd * gamma + beta;
                    }
                }
            },
        );
    });
    from_values(y, x.shape())
}

/// Which scale a row has: all have one, or those of a sample have one.
struct Scales {
    width: usize,
    rows: usize,
}

impl Scales {
    fn of(x: &FlexTensor, gamma: &FlexTensor) -> Self {
        let width = x.shape()[x.rank() - 1];
        let scales = gamma.shape().num_elements() / width;
        Self { width, rows: x.shape().num_elements() / width / scales }
    }

    /// The elements of the scale of a row.
    #[inline(always)]
    fn of_row(&self, row: usize) -> Range<usize> {
        let first = row / self.rows * self.width;
        first..first + self.width
    }
}

/// The gradient of [`layer_norm`] by `x`.
pub(super) fn layer_norm_gradient(
    x: &FlexTensor,
    dy: &FlexTensor,
    gamma: &FlexTensor,
    eps: f64,
) -> FlexTensor {
    let [x_, dy, gamma] = [x, dy, gamma].map(FlexTensor::to_contiguous);
    let scales = Scales::of(&x_, &gamma);
    let (x_, dy, gamma) = (values(&x_), values(&dy), values(&gamma));
    let width = scales.width;
    let mut dx = vec![0.0; x_.len()];
    let rows = rows_per_task(x_.len() / width, 2 * WORK * width);
    let size = width * rows;
    let tasks = x_.chunks(size).zip(dy.chunks(size)).zip(dx.chunks_mut(size)).enumerate().collect();
    for_each_task(tasks, 2 * WORK * x_.len(), |(task, ((x, dy), dx))| {
        vectorized(
            #[inline(always)]
            || {
                let each = x.chunks(width).zip(dy.chunks(width)).zip(dx.chunks_mut(width));
                for (row, ((x, dy), dx)) in each.enumerate() {
                    let (mean, rstd) = statistics(x, eps);
                    let gamma = &gamma[scales.of_row(task * rows + row)];
                    for ((g, dy), gamma) in dx.iter_mut().zip(dy).zip(gamma) {
                        *g = gamma * dy;
                    }
                    input_gradient(dx, x, mean, rstd);
                }
            },
        );
    });
    from_values(dx, x.shape())
}
