//! Convolutions of kernel 3 and stride 1 by Winograd's minimal filtering, F(2x2, 3x3) (Lavin and Gray, arXiv
//! 1509.09308). They take 16 multiplications for four pixels instead of 36, and sums of two to four numbers
//! around them.
//!
//! ```text
//! y = A' [(G g G') * (B' d B)] A      d: 4x4 pixels of the input, g: a filter, y: 2x2 pixels of the output
//! M_k[o, t] = sum_c U_k[o, c] V_k[c, t]      the products *, k of 16, of all tiles t: matrices
//! ```
//!
//! All entries of A and B are 0 or ±1, and those of G are at least 1/4. So no digits are lost: over 160
//! channels the error is below 1e-6 of the largest result.
//!
//! Filters are transformed once, as long as they
//! live. The gradient is the convolution with the filters rotated by 180 degrees, whose U are the same
//! matrices in another order.

use std::array::from_fn;
use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::TensorMetadata;
use faer::{Accum, MatRef};

use super::conv_geometry::{Sizes, Task, tasks};
use super::matrices::{multiply, rows_of, rows_of_mut};
use super::parallel::{for_each_task, with_scratch};
use super::simd::vectorized;
use super::tensor::{FlexTensor, from_values, values};

/// The number of elements of a transformed tile.
const TAPS: usize = 16;
/// The number of tiles of a task. Both factors of its products stay in the cache, and the products are not
/// narrow.
const TILES: usize = 64;
/// With fewer channels on either side the transforms cost more than the multiplications that they save.
const MIN_CHANNELS: usize = 24;
/// With fewer tiles, to read the larger transformed filters costs more than the filtering saves.
const MIN_TILES: usize = 16;

/// Whether this algorithm computes the convolution, and faster than im2col does.
pub(super) fn suits(sizes: &Sizes, batch: usize, outs: usize) -> bool {
    let [height, width] = sizes.out;
    sizes.kernel == [3, 3]
        && sizes.stride == [1, 1]
        && height.is_multiple_of(2)
        && width.is_multiple_of(4)
        && sizes.channels.min(outs) >= MIN_CHANNELS
        && batch * height * width / 4 >= MIN_TILES
}

/// The map that a convolution applies.
#[derive(Clone, Copy)]
pub(super) enum Direction {
    /// The convolution of the input.
    Forward,
    /// The adjoint convolution, of the gradient of the output.
    Adjoint,
}

/// The convolution of `x` with `weight` `[o, c, 3, 3]`, or its adjoint. `sizes` are the sizes in that
/// direction.
pub(super) fn convolve(
    x: &FlexTensor,
    weight: &FlexTensor,
    sizes: &Sizes,
    direction: Direction,
) -> FlexTensor {
    let (batch, channels) = (x.shape()[0], sizes.channels);
    let [rows, cols, ..] = weight.shape().dims::<4>();
    let filters = transformed(weight);
    let factor = |k: usize| -> MatRef<'_, f32> {
        let u = |k| rows_of(&filters[k * rows * cols..][..rows * cols], rows, cols);
        match direction {
            Direction::Forward => u(k).transpose(),
            // The rotation by 180 degrees swaps the first and the last row of G g, and the columns.
            Direction::Adjoint => u(4 * [3, 1, 2, 0][k / 4] + [3, 1, 2, 0][k % 4]),
        }
    };
    let outs = if matches!(direction, Direction::Forward) { rows } else { cols };
    let x = x.to_contiguous();
    let (x, size) = (values(&x), channels * sizes.height * sizes.width);
    let [height, width] = sizes.out;
    let mut y = vec![0.0; batch * outs * height * width];
    let tile = 2 * TILES.div_ceil(width / 2);
    let samples_per_task = TILES.div_ceil(height * width / 4).min(batch);
    let map = Sizes { channels: 1, ..*sizes };
    let tasks = tasks(&mut y, outs, sizes, tile, samples_per_task);
    for_each_task(tasks, 4 * batch * outs * channels * height * width, |task: Task<'_>| {
        let Task { first, rows, mut maps } = task;
        let each = rows.len() / 2 * (width / 2);
        let tiles = maps.len() * each;
        let lengths = [map.band(rows.len()), TAPS * channels * tiles, TAPS * outs * tiles];
        with_scratch(lengths, |[band, inputs, products]| {
            for i in 0..maps.len() {
                let image = x[(first + i) * size..][..size].chunks(sizes.height * sizes.width);
                for (c, image) in image.enumerate() {
                    map.pad(image, &rows, band);
                    let to = &mut inputs[c * tiles + i * each..];
                    by_width(width, Analysis { band, to, plane: channels * tiles, width });
                }
            }
            for k in 0..TAPS {
                let v =
                    rows_of(&inputs[k * channels * tiles..][..channels * tiles], channels, tiles);
                let m = rows_of_mut(&mut products[k * outs * tiles..][..outs * tiles], outs, tiles);
                multiply(m.transpose_mut(), Accum::Replace, 1.0, v.transpose(), factor(k));
            }
            for (i, map) in maps.iter_mut().enumerate() {
                for (o, column) in map.as_mut().col_iter_mut().enumerate() {
                    let Some(to) = column.try_as_col_major_mut() else { continue };
                    let from = &products[o * tiles + i * each..];
                    let to = to.as_slice_mut();
                    by_width(width, Synthesis { from, plane: outs * tiles, to, width });
                }
            }
        });
    });
    from_values(y, [batch, outs, height, width])
}

/// A loop over rows of tiles, `T` tiles at a time.
trait Rows {
    fn run<const T: usize>(self);
}

/// Runs the loop with as many tiles at a time as divide a row of `width` pixels, at most 16.
fn by_width<R: Rows>(width: usize, rows: R) {
    vectorized(
        #[inline(always)]
        || match width {
            _ if width.is_multiple_of(32) => rows.run::<16>(),
            _ if width.is_multiple_of(16) => rows.run::<8>(),
            _ if width.is_multiple_of(8) => rows.run::<4>(),
            _ => rows.run::<2>(),
        },
    );
}

/// Computes `B' d B` of the tiles of a padded band of one map. Element `k` of the tiles goes to
/// `to[k plane..]`.
struct Analysis<'a> {
    band: &'a [f32],
    to: &'a mut [f32],
    plane: usize,
    width: usize,
}

impl Rows for Analysis<'_> {
    #[inline(always)]
    fn run<const T: usize>(self) {
        let Self { band, to, plane, width } = self;
        let stride = width + 2;
        for block in 0..width / (2 * T) {
            let mut d = [[[0.0; T]; 4]; 4];
            let line = |i: usize| &band[i * stride + 2 * T * block..];
            spread(line(0), &mut d[0]);
            spread(line(1), &mut d[1]);
            for row in 0..band.len() / stride / 2 - 1 {
                spread(line(2 * row + 2), &mut d[2]);
                spread(line(2 * row + 3), &mut d[3]);
                let first = (row * (width / (2 * T)) + block) * T;
                let column = |j: usize| [&d[0][j], &d[1][j], &d[2][j], &d[3][j]];
                for j in 0..4 {
                    let [d0, d1, d2, d3] = column(j);
                    let at = |i: usize| (4 * i + j) * plane + first;
                    combine(&mut to[at(0)..], d0, d2, |p, q| p - q);
                    combine(&mut to[at(1)..], d1, d2, |p, q| p + q);
                    combine(&mut to[at(2)..], d1, d2, |p, q| q - p);
                    combine(&mut to[at(3)..], d1, d3, |p, q| p - q);
                }
                // The next row of tiles begins with the last two lines of this one.
                d = [d[2], d[3], d[0], d[1]];
            }
        }
    }
}

/// Computes `d B` of one line of the tiles that begin at `line`.
#[inline(always)]
fn spread<const T: usize>(line: &[f32], d: &mut [[f32; T]; 4]) {
    let (Some(near), Some(far)) = (
        line.as_chunks::<2>().0.first_chunk::<T>(),
        line[2..].as_chunks::<2>().0.first_chunk::<T>(),
    ) else {
        return;
    };
    // The compiler vectorizes these two loops, but not one loop over both.
    let (mut even, mut odd) = ([0.0; T], [0.0; T]);
    let (mut next_even, mut next_odd) = ([0.0; T], [0.0; T]);
    for t in 0..T {
        [even[t], odd[t]] = near[t];
    }
    for t in 0..T {
        [next_even[t], next_odd[t]] = far[t];
    }
    combine(&mut d[0], &even, &next_even, |p, q| p - q);
    combine(&mut d[1], &odd, &next_even, |p, q| p + q);
    combine(&mut d[2], &odd, &next_even, |p, q| q - p);
    combine(&mut d[3], &odd, &next_odd, |p, q| p - q);
}

/// Applies `f` to each pair of numbers.
#[inline(always)]
fn combine<const T: usize>(
    to: &mut [f32],
    p: &[f32; T],
    q: &[f32; T],
    f: impl Fn(f32, f32) -> f32,
) {
    if let Some(to) = to.first_chunk_mut::<T>() {
        for t in 0..T {
            to[t] = f(p[t], q[t]);
        }
    }
}

/// Computes `A' m A` of the tiles of one map. Element `k` of the tiles is at `from[k plane..]`.
struct Synthesis<'a> {
    from: &'a [f32],
    plane: usize,
    to: &'a mut [f32],
    width: usize,
}

impl Rows for Synthesis<'_> {
    #[inline(always)]
    fn run<const T: usize>(self) {
        let Self { from, plane, to, width } = self;
        for (row, lines) in to.chunks_mut(2 * width).enumerate() {
            let (upper, lower) = lines.split_at_mut(width);
            let blocks = upper.chunks_mut(2 * T).zip(lower.chunks_mut(2 * T));
            for (block, (upper, lower)) in blocks.enumerate() {
                let first = (row * (width / (2 * T)) + block) * T;
                let mut sums = [[[0.0; T]; 4]; 2];
                let [above, below] = &mut sums;
                for j in 0..4 {
                    let m = |i: usize| from[(4 * i + j) * plane + first..].first_chunk::<T>();
                    if let (Some(m0), Some(m1), Some(m2), Some(m3)) = (m(0), m(1), m(2), m(3)) {
                        for t in 0..T {
                            above[j][t] = m0[t] + m1[t] + m2[t];
                            below[j][t] = m1[t] - m2[t] - m3[t];
                        }
                    }
                }
                weave(above, upper);
                weave(below, lower);
            }
        }
    }
}

/// Computes `s A` of a line of tiles.
#[inline(always)]
fn weave<const T: usize>(s: &[[f32; T]; 4], line: &mut [f32]) {
    if let Some(line) = line.as_chunks_mut::<2>().0.first_chunk_mut::<T>() {
        for t in 0..T {
            line[t] = [s[0][t] + s[1][t] + s[2][t], s[1][t] - s[2][t] - s[3][t]];
        }
    }
}

/// Computes `G g G'` of a weight `[o, c, 3, 3]`: `[16, o, c]`.
fn transform(weight: &[f32]) -> Vec<f32> {
    let filters = weight.as_chunks::<9>().0;
    let mut u = vec![0.0; TAPS * filters.len()];
    let rows = |g: [f32; 3]| {
        let (ends, middle) = (0.5 * (g[0] + g[2]), 0.5 * g[1]);
        [g[0], ends + middle, ends - middle, g[2]]
    };
    for (f, g) in filters.iter().enumerate() {
        let columns: [[f32; 4]; 3] = from_fn(|j| rows([g[j], g[3 + j], g[6 + j]]));
        for i in 0..4 {
            let line = rows([columns[0][i], columns[1][i], columns[2][i]]);
            for (j, number) in line.into_iter().enumerate() {
                u[(4 * i + j) * filters.len() + f] = number;
            }
        }
    }
    u
}

/// A weight and its transform. The entry holds the weight, so that its memory is neither reused nor changed
/// in place.
struct CachedTransform {
    weight: FlexTensor,
    filters: Arc<Vec<f32>>,
}

/// The transforms of weights that are in use. An insertion drops the entries of all other weights.
static TRANSFORMS: Mutex<Vec<CachedTransform>> = Mutex::new(Vec::new());
/// The largest number of cached elements: 256 MiB.
const MAX_CACHED: usize = 1 << 26;

/// The transform of a weight, computed once if the cache has room for it.
fn transformed(weight: &FlexTensor) -> Arc<Vec<f32>> {
    if !weight.is_contiguous() {
        return Arc::new(transform(values(&weight.to_contiguous())));
    }
    let numbers = values(weight);
    let transforms = || TRANSFORMS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(entry) =
        transforms().iter().find(|entry| std::ptr::eq(values(&entry.weight), numbers))
    {
        return entry.filters.clone();
    }
    let filters = Arc::new(transform(numbers));
    let mut transforms = transforms();
    transforms.retain(|entry| !entry.weight.is_unique());
    let cached: usize = transforms.iter().map(|entry| entry.filters.len()).sum();
    if cached + filters.len() <= MAX_CACHED {
        transforms.push(CachedTransform { weight: weight.clone(), filters: filters.clone() });
    }
    filters
}

#[cfg(test)]
mod tests {
    use burn::tensor::ops::ConvOptions;

    use super::*;

    /// Reproducible numbers of mean 0 and variance 1.
    fn noise(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut uniform = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count)
            .map(|_| uniform() + uniform() + uniform() + uniform())
            .map(|x| x * 3f32.sqrt())
            .collect()
    }

    /// Both directions against sums of 1440 products in float64. The error is 4e-7 of the largest number.
    #[test]
    fn both_directions_are_accurate_in_float32() {
        let (channels, outs, side) = (160, 32, 8);
        let (x, w) = (noise(channels * side * side, 1), noise(outs * channels * 9, 2));
        let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
        let pixel = |c: usize, i: usize, j: usize| {
            let inside = (1..=side).contains(&i) && (1..=side).contains(&j);
            if inside { f64::from(x[(c * side + i - 1) * side + j - 1]) } else { 0.0 }
        };
        let mut exact = Vec::new();
        for o in 0..outs {
            for p in 0..side * side {
                let taps = (0..channels * 9).map(|r| {
                    let (c, i, j) = (r / 9, r / 3 % 3, r % 3);
                    f64::from(w[o * channels * 9 + r]) * pixel(c, p / side + i, p % side + j)
                });
                exact.push(taps.sum::<f64>());
            }
        }
        let error = |y: &FlexTensor| {
            let y: Vec<f64> = values(y).iter().copied().map(f64::from).collect();
            soda_testing::relative_error(&y, &exact)
        };
        let sizes = Sizes::new([channels, side, side], [3, 3], &options);
        assert!(suits(&sizes, 1, outs));
        let map = from_values(x.clone(), [1, channels, side, side]);
        let forward = convolve(
            &map,
            &from_values(w.clone(), [outs, channels, 3, 3]),
            &sizes,
            Direction::Forward,
        );
        // The adjoint convolution with rotated filters and swapped channel axes is the convolution.
        let rotated = (0..channels * outs * 9)
            .map(|i| w[(i / 9 % outs * channels + i / 9 / outs) * 9 + 8 - i % 9])
            .collect();
        let backward = convolve(
            &map,
            &from_values(rotated, [channels, outs, 3, 3]),
            &sizes,
            Direction::Adjoint,
        );
        for (direction, y) in [("forward", forward), ("backward", backward)] {
            let error = error(&y);
            assert!(error <= 1e-6, "{direction}: the relative error is {error:e}");
        }
    }

    /// A cached transform belongs to its weight, not to another weight that was at the same address before.
    #[test]
    fn the_cache_drops_weights_that_are_gone() {
        for seed in 0..20 {
            let numbers = noise(24 * 24 * 9, seed);
            let weight = from_values(numbers.clone(), [24, 24, 3, 3]);
            assert_eq!(*transformed(&weight), transform(&numbers));
            assert_eq!(*transformed(&weight), transform(&numbers));
        }
        let held = TRANSFORMS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter(|k| k.weight.is_unique())
            .count();
        assert!(held <= 4, "{held} cached weights are used nowhere else");
    }
}
