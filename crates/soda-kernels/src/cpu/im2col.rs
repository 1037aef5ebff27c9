//! Convolutions as matrix products with the columns of im2col, some rows of the output at a time.
//!
//! ```text
//! y[o, p] = sum_r w[o, r] columns[r, p]      r = (c, i, j), columns[r, p] = x[c, s p + (i, j) - padding]
//! ```
//!
//! The columns of a task fit into the cache. Small maps are taken several samples at a time, so that the
//! product is not narrow. The gradient by the input runs the same way backwards.

use burn::backend::TensorMetadata;
use faer::Accum;

use super::conv_geometry::{Sizes, Task, tasks};
use super::matrices::{multiply, rows_of, rows_of_mut};
use super::parallel::{for_each_task, with_scratch};
use super::simd::vectorized;
use super::tensor::{FlexTensor, from_values, values};

/// The convolution of `x` `[b, c, h, w]` with `weight` `[o, c, kh, kw]`.
pub(super) fn forward(x: &FlexTensor, weight: &FlexTensor, sizes: &Sizes) -> FlexTensor {
    let ([batch, c, h, w], outs) = (x.shape().dims(), weight.shape()[0]);
    let (depth, pixels) = (sizes.depth(), sizes.pixels());
    let [x, weight] = [x, weight].map(FlexTensor::to_contiguous);
    let (x, weight) = (values(&x), rows_of(values(&weight), outs, depth));
    let mut y = vec![0.0; batch * outs * pixels];
    let tasks = tasks(&mut y, outs, sizes, sizes.tile(), sizes.samples_per_task(batch));
    for_each_task(tasks, batch * outs * depth * pixels, |Task { first, rows, mut maps }| {
        let count = rows.len() * sizes.out[1];
        let stride = maps.len() * count;
        let joined = if maps.len() > 1 { outs * stride } else { 0 };
        let lengths = [sizes.band(rows.len()), depth * stride, joined];
        with_scratch(lengths, |[band, columns, joined]| {
            for i in 0..maps.len() {
                sizes.pad(&x[(first + i) * c * h * w..][..c * h * w], &rows, band);
                sizes.gather(band, rows.len(), &mut columns[i * count..], stride);
            }
            let columns = rows_of(columns, depth, stride).transpose();
            if let [map] = &mut maps[..] {
                multiply(map.as_mut(), Accum::Replace, 1.0, columns, weight.transpose());
                return;
            }
            let all = rows_of_mut(joined, outs, stride).transpose_mut();
            multiply(all, Accum::Replace, 1.0, columns, weight.transpose());
            let all = rows_of(joined, outs, stride).transpose();
            for (i, map) in maps.iter_mut().enumerate() {
                map.copy_from(all.subrows(i * count, count));
            }
        });
    });
    from_values(y, [batch, outs, sizes.out[0], sizes.out[1]])
}

/// The gradient of [`forward`] by its input from the gradient `dy` of its value. `sizes` are the sizes of
/// [`forward`].
pub(super) fn input_gradient(dy: &FlexTensor, weight: &FlexTensor, sizes: &Sizes) -> FlexTensor {
    let (batch, outs) = (dy.shape()[0], weight.shape()[0]);
    let Sizes { channels: c, height, width, .. } = *sizes;
    let (depth, pixels, size) = (sizes.depth(), sizes.pixels(), c * height * width);
    let [dy, weight] = [dy, weight].map(FlexTensor::to_contiguous);
    let (dy, weight) = (values(&dy), rows_of(values(&weight), outs, depth));
    let mut dx = vec![0.0; batch * size];
    let (tile, samples_per_task) = (sizes.tile(), sizes.samples_per_task(batch));
    let tasks = dy
        .chunks(samples_per_task * outs * pixels)
        .zip(dx.chunks_mut(samples_per_task * size))
        .collect();
    for_each_task(tasks, batch * outs * depth * pixels, |(dy, dx): (&[f32], &mut [f32])| {
        let samples = dx.len() / size;
        // Several samples of a task are whole maps.
        let tile = if samples > 1 { sizes.out[0] } else { tile };
        let max_columns = samples * tile * sizes.out[1];
        let lengths = [sizes.band(tile), depth * max_columns, outs * max_columns];
        with_scratch(lengths, |[band, columns, joined]| {
            for first in (0..sizes.out[0]).step_by(tile) {
                let rows = first..(first + tile).min(sizes.out[0]);
                let count = rows.len() * sizes.out[1];
                let stride = samples * count;
                let joined = &mut joined[..outs * stride];
                for (i, dy) in dy.chunks(outs * pixels).enumerate() {
                    for (to, from) in joined.chunks_mut(stride).zip(dy.chunks(pixels)) {
                        to[i * count..][..count]
                            .copy_from_slice(&from[first * sizes.out[1]..][..count]);
                    }
                }
                let columns = &mut columns[..depth * stride];
                let slopes = rows_of(joined, outs, stride);
                multiply(
                    rows_of_mut(columns, depth, stride),
                    Accum::Replace,
                    1.0,
                    weight.transpose(),
                    slopes,
                );
                let band = &mut band[..sizes.band(rows.len())];
                for (i, dx) in dx.chunks_mut(size).enumerate() {
                    band.fill(0.0);
                    let columns = &columns[i * count..];
                    vectorized(
                        #[inline(always)]
                        || sizes.scatter(columns, stride, rows.len(), band),
                    );
                    sizes.add_band(band, &rows, dx);
                }
            }
        });
    });
    from_values(dx, [batch, c, height, width])
}
