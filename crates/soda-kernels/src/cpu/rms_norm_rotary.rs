//! RMS norm of heads and their rotation, and the gradient. A head is processed while it is in the cache.

use burn::backend::TensorMetadata;

use super::parallel::{for_each_task, rows_per_task};
use super::simd::{sum, sum_of_pairs, vectorized};
use super::tensor::{FlexTensor, from_values, values};

/// The approximate cost of one element in multiplications.
const WORK: usize = 12;

/// The constants of the operation: scales `[d]`, cosines and sines `[b or 1, n, 1, d]`, all contiguous.
struct Constants<'a> {
    gamma: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    heads: usize,
    eps: f64,
}

impl Constants<'_> {
    /// Cosines and sines of the token of the row `row` of all heads. One sample's tables serve all samples.
    #[inline(always)]
    fn rotation(&self, row: usize) -> (&[f32], &[f32]) {
        let width = self.gamma.len();
        let first = row / self.heads * width % self.cos.len();
        (&self.cos[first..first + width], &self.sin[first..first + width])
    }

    /// `1 / sqrt(mean(x²) + eps)`.
    #[inline(always)]
    fn inverse_rms(&self, x: &[f32]) -> f32 {
        let mean = sum(x, |x| x * x) / x.len() as f64;
        (mean + self.eps).sqrt().recip() as f32
    }
}

/// `y = n cos + P n sin` with `n = gamma x r`.
pub(super) fn forward(x: &FlexTensor, constants: [&FlexTensor; 3], eps: f64) -> FlexTensor {
    let shape = x.shape();
    let [_, _, heads, width] = shape.dims();
    let [x, gamma, cos, sin] =
        [x, constants[0], constants[1], constants[2]].map(FlexTensor::to_contiguous);
    let (gamma, cos, sin) = (values(&gamma), values(&cos), values(&sin));
    let (x, constants) = (values(&x), Constants { gamma, cos, sin, heads, eps });
    let mut y = vec![0.0; x.len()];
    let rows = rows_per_task(x.len() / width, WORK * width);
    let size = rows * width;
    let tasks = x.chunks(size).zip(y.chunks_mut(size)).enumerate().collect();
    for_each_task(tasks, WORK * x.len(), |(task, (x, y))| {
        vectorized(
            #[inline(always)]
            || {
                let each = x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate();
                for (row, (x, y)) in each {
                    let (cos, sin) = constants.rotation(task * rows + row);
                    let r = constants.inverse_rms(x);
                    let pairs = x.chunks_exact(2).zip(y.chunks_exact_mut(2));
                    let tables = cos.chunks_exact(2).zip(sin.chunks_exact(2));
                    let all = pairs.zip(tables).zip(constants.gamma.chunks_exact(2));
                    for (((x, y), (cos, sin)), gamma) in all {
                        let (even, odd) = (x[0] * r * gamma[0], x[1] * r * gamma[1]);
                        y[0] = even * cos[0] + odd * sin[0];
                        y[1] = odd * cos[1] + even * sin[1];
                    }
                }
            },
        );
    });
    from_values(y, shape)
}

/// The gradient of [`forward`] by `x`.
pub(super) fn gradient(
    x: &FlexTensor,
    dy: &FlexTensor,
    constants: [&FlexTensor; 3],
    eps: f64,
) -> FlexTensor {
    let shape = x.shape();
    let [_, _, heads, width] = shape.dims();
    let [x, dy, gamma, cos, sin] =
        [x, dy, constants[0], constants[1], constants[2]].map(FlexTensor::to_contiguous);
    let (gamma, cos, sin) = (values(&gamma), values(&cos), values(&sin));
    let (x, dy, constants) = (values(&x), values(&dy), Constants { gamma, cos, sin, heads, eps });
    let mut dx = vec![0.0; x.len()];
    let rows = rows_per_task(x.len() / width, 2 * WORK * width);
    let size = rows * width;
    let tasks = x.chunks(size).zip(dy.chunks(size)).zip(dx.chunks_mut(size)).enumerate().collect();
    for_each_task(tasks, 2 * WORK * x.len(), |(task, ((x, dy), dx))| {
        vectorized(
            #[inline(always)]
            || {
                let pairs = x.chunks_exact(width).zip(dy.chunks_exact(width));
                let each = pairs.zip(dx.chunks_exact_mut(width)).enumerate();
                for (row, ((x, dy), dx)) in each {
                    let (cos, sin) = constants.rotation(task * rows + row);
                    let r = constants.inverse_rms(x);
                    // g = gamma (dy cos + P (dy sin)), in the place of the result
                    let pairs = dy.chunks_exact(2).zip(dx.chunks_exact_mut(2));
                    let tables = cos.chunks_exact(2).zip(sin.chunks_exact(2));
                    let all = pairs.zip(tables).zip(constants.gamma.chunks_exact(2));
                    for (((dy, g), (cos, sin)), gamma) in all {
                        g[0] = gamma[0] * (dy[0] * cos[0] + dy[1] * sin[1]);
                        g[1] = gamma[1] * (dy[1] * cos[1] + dy[0] * sin[0]);
                    }
                    let along = sum_of_pairs(x, dx, |x, g| x * g) / width as f64;
                    let along = along as f32 * r * r;
                    for (x, g) in x.iter().zip(dx) {
                        *g = r * (*g - x * along);
                    }
                }
            },
        );
    });
    from_values(dx, shape)
}
