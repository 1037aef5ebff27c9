//! The gates of feed-forward layers, GEGLU and SwiGLU, and their gradients.

use burn::backend::TensorMetadata;

use super::parallel::{for_each_task, rows_per_task};
use super::simd::{normal, normal_density, sigmoid, vectorized};
use super::tensor::{FlexTensor, from_values, values};

/// A gate of the halves `(a, b)` of a row.
///
/// Its functions must be `#[inline(always)]`, as all that [`vectorized`] compiles.
pub(super) trait Gate {
    /// The approximate cost of one element in multiplications.
    const WORK: usize;

    /// The value for one element of each half.
    fn value(a: f32, b: f32) -> f32;

    /// The gradients by `a` and `b`, from the gradient `dy` of the value.
    fn gradient(a: f32, b: f32, dy: f32) -> [f32; 2];
}

/// `a gelu(b) = a b P(b)`, with the standard normal distribution `P`.
pub(super) struct Geglu;

impl Gate for Geglu {
    const WORK: usize = 32;

    #[inline(always)]
    fn value(a: f32, b: f32) -> f32 {
        a * b * normal(b)
    }

    #[inline(always)]
    fn gradient(a: f32, b: f32, dy: f32) -> [f32; 2] {
        let p = normal(b);
        [dy * b * p, dy * a * (p + b * normal_density(b))]
    }
}

/// `a s(a) b`, with the sigmoid `s`.
pub(super) struct Swiglu;

impl Gate for Swiglu {
    const WORK: usize = 24;

    #[inline(always)]
    fn value(a: f32, b: f32) -> f32 {
        a * sigmoid(a) * b
    }

    #[inline(always)]
    fn gradient(a: f32, b: f32, dy: f32) -> [f32; 2] {
        let s = sigmoid(a);
        [dy * b * s * (1.0 + a * (1.0 - s)), dy * a * s]
    }
}

/// Applies a gate to the halves `(a, b)` of the last axis.
pub(super) fn forward<G: Gate>(x: &FlexTensor) -> FlexTensor {
    let mut shape = x.shape();
    let last = shape.num_dims() - 1;
    let half = shape[last] / 2;
    shape[last] = half;
    let x = x.to_contiguous();
    let x = values(&x);
    let mut y = vec![0.0; x.len() / 2];
    let rows = rows_per_task(y.len() / half, G::WORK * half);
    let tasks = x.chunks(2 * half * rows).zip(y.chunks_mut(half * rows)).collect();
    for_each_task(tasks, G::WORK * x.len() / 2, |(x, y)| {
        vectorized(
            #[inline(always)]
            || {
                for (x, y) in x.chunks(2 * half).zip(y.chunks_mut(half)) {
                    let (a, b) = x.split_at(half);
                    for ((a, b), y) in a.iter().zip(b).zip(y) {
                        *y = G::value(*a, *b);
                    }
                }
            },
        );
    });
    from_values(y, shape)
}

/// The gradient of [`forward`] by `x`.
pub(super) fn gradient<G: Gate>(x: &FlexTensor, dy: &FlexTensor) -> FlexTensor {
    let shape = x.shape();
    let half = shape[shape.num_dims() - 1] / 2;
    let [x, dy] = [x, dy].map(FlexTensor::to_contiguous);
    let (x, dy) = (values(&x), values(&dy));
    let mut dx = vec![0.0; x.len()];
    let rows = rows_per_task(dy.len() / half, 2 * G::WORK * half);
    let size = 2 * half * rows;
    let tasks = x.chunks(size).zip(dy.chunks(size / 2)).zip(dx.chunks_mut(size)).collect();
    for_each_task(tasks, 2 * G::WORK * dy.len(), |((x, dy), dx)| {
        vectorized(
            #[inline(always)]
            || {
                let rows = x.chunks(2 * half).zip(dy.chunks(half)).zip(dx.chunks_mut(2 * half));
                for ((x, dy), dx) in rows {
                    let ((a, b), (da, db)) = (x.split_at(half), dx.split_at_mut(half));
                    for (((a, b), dy), (da, db)) in
                        a.iter().zip(b).zip(dy).zip(da.iter_mut().zip(db))
                    {
                        [*da, *db] = G::gradient(*a, *b, *dy);
                    }
                }
            },
        );
    });
    from_values(dx, shape)
}
