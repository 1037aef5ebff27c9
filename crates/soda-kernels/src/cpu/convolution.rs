//! Convolutions as matrix products, some rows of the output at a time.
//!
//! ```text
//! y[o, p] = sum_r w[o, r] columns[r, p]      r = (c, i, j), columns[r, p] = x[c, s p + (i, j) - padding]
//! ```
//!
//! The columns of some rows of pixels fit into the cache; small maps are taken several samples at a time, so that
//! the product is not a narrow one. The gradient by the input runs the same way backwards.

use std::ops::Range;

use burn::backend::TensorMetadata;
use burn::tensor::ops::ConvOptions;
use faer::{Accum, MatMut};

use super::dense::{Flat, multiply, rows_of, rows_of_mut, run, scratch, tensor, values};
use super::vector::vectorized;
use super::winograd::{self, Way};

/// As many numbers are in the columns of a tile, where that is at least a row of pixels: one MiB.
const TILE: usize = 1 << 18;
/// Products with fewer columns are slow.
const NARROW: usize = 64;

/// The sizes of a convolution of maps `[c, h, w]`.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) kernel: [usize; 2],
    pub(super) stride: [usize; 2],
    pub(super) padding: [usize; 2],
    /// Height and width of the output.
    pub(super) out: [usize; 2],
}

impl Sizes {
    pub(super) fn new(
        [channels, height, width]: [usize; 3],
        kernel: [usize; 2],
        options: &ConvOptions<2>,
    ) -> Self {
        let (stride, padding) = (options.stride, options.padding_begin());
        let side =
            |axis: usize, full: usize| (full + 2 * padding[axis] - kernel[axis]) / stride[axis] + 1;
        let out = [side(0, height), side(1, width)];
        Self { channels, height, width, kernel, stride, padding, out }
    }

    /// Rows of the columns.
    fn depth(&self) -> usize {
        self.channels * self.kernel[0] * self.kernel[1]
    }

    /// Pixels of the output.
    fn pixels(&self) -> usize {
        self.out[0] * self.out[1]
    }

    /// Rows of pixels in a tile.
    fn tile(&self) -> usize {
        let tiles = (self.depth() * self.pixels()).div_ceil(TILE).max(1);
        self.out[0].div_ceil(tiles).max(1)
    }

    /// Samples that are taken together.
    fn together(&self, batch: usize) -> usize {
        NARROW.div_ceil(self.pixels()).min(batch)
    }

    /// Numbers of the padded input that `rows` of the output see.
    pub(super) fn band(&self, rows: usize) -> usize {
        self.channels * self.band_rows(rows) * self.band_width()
    }

    fn band_rows(&self, rows: usize) -> usize {
        (rows - 1) * self.stride[0] + self.kernel[0]
    }

    fn band_width(&self) -> usize {
        self.width + 2 * self.padding[1]
    }

    /// The rows of the input that are in the band of `rows` of the output, and the place in the band of the first.
    fn inside(&self, rows: &Range<usize>) -> (Range<usize>, usize) {
        let top = rows.start * self.stride[0];
        let first = top.saturating_sub(self.padding[0]);
        let end = (top + self.band_rows(rows.len())).saturating_sub(self.padding[0]);
        (first..end.min(self.height), first + self.padding[0] - top)
    }

    /// Copies what `rows` of the output see of `image`, with its padding.
    pub(super) fn pad(&self, image: &[f32], rows: &Range<usize>, band: &mut [f32]) {
        let (inside, place) = self.inside(rows);
        let (width, left) = (self.band_width(), self.padding[1]);
        band.fill(0.0);
        let maps = image.chunks(self.height * self.width);
        for (map, band) in maps.zip(band.chunks_mut(self.band_rows(rows.len()) * width)) {
            let band = band[place * width..].chunks_mut(width);
            for (line, band) in
                map[inside.start * self.width..inside.end * self.width].chunks(self.width).zip(band)
            {
                band[left..left + self.width].copy_from_slice(line);
            }
        }
    }

    /// Adds a band to the image that it is of.
    fn add_band(&self, band: &[f32], rows: &Range<usize>, image: &mut [f32]) {
        let (inside, place) = self.inside(rows);
        let (width, left) = (self.band_width(), self.padding[1]);
        let maps = image.chunks_mut(self.height * self.width);
        for (map, band) in maps.zip(band.chunks(self.band_rows(rows.len()) * width)) {
            let band = band[place * width..].chunks(width);
            let lines =
                map[inside.start * self.width..inside.end * self.width].chunks_mut(self.width);
            for (line, band) in lines.zip(band) {
                line.iter_mut().zip(&band[left..]).for_each(|(x, y)| *x += y);
            }
        }
    }

    /// For each run of pixels of a row: where it is in columns of `stride` numbers, and where in the band.
    #[inline(always)]
    fn runs(&self, rows: usize, stride: usize, mut f: impl FnMut(Range<usize>, Range<usize>)) {
        let ([kh, kw], out, width) = (self.kernel, self.out[1], self.band_width());
        let map = self.band_rows(rows) * width;
        let reach = (out - 1) * self.stride[1] + 1;
        for r in 0..self.depth() {
            let (c, i, j) = (r / (kh * kw), r / kw % kh, r % kw);
            for row in 0..rows {
                let column = r * stride + row * out;
                let seen = c * map + (row * self.stride[0] + i) * width + j;
                f(column..column + out, seen..seen + reach);
            }
        }
    }

    /// Writes the columns of a band.
    fn gather(&self, band: &[f32], rows: usize, columns: &mut [f32], stride: usize) {
        let step = self.stride[1];
        self.runs(
            rows,
            stride,
            #[inline(always)]
            |column, seen| {
                let (column, seen) = (&mut columns[column], &band[seen]);
                match column.len() {
                    _ if step > 1 => {
                        column.iter_mut().zip(seen.iter().step_by(step)).for_each(|(x, y)| *x = *y);
                    }
                    // The lengths of small latents, as moves instead of calls.
                    4 => copy::<4>(column, seen),
                    8 => copy::<8>(column, seen),
                    16 => copy::<16>(column, seen),
                    32 => copy::<32>(column, seen),
                    _ => column.copy_from_slice(seen),
                }
            },
        );
    }

    /// Adds columns to the band that they are of.
    #[inline(always)]
    fn scatter(&self, columns: &[f32], stride: usize, rows: usize, band: &mut [f32]) {
        let step = self.stride[1];
        self.runs(
            rows,
            stride,
            #[inline(always)]
            |column, seen| {
                let (column, seen) = (&columns[column], &mut band[seen]);
                match column.len() {
                    _ if step > 1 => {
                        seen.iter_mut().step_by(step).zip(column).for_each(|(x, y)| *x += *y);
                    }
                    4 => add::<4>(seen, column),
                    8 => add::<8>(seen, column),
                    16 => add::<16>(seen, column),
                    32 => add::<32>(seen, column),
                    _ => seen.iter_mut().zip(column).for_each(|(x, y)| *x += *y),
                }
            },
        );
    }
}

#[inline(always)]
fn copy<const N: usize>(to: &mut [f32], from: &[f32]) {
    if let (Some(to), Some(from)) = (to.first_chunk_mut::<N>(), from.first_chunk::<N>()) {
        *to = *from;
    }
}

#[inline(always)]
fn add<const N: usize>(to: &mut [f32], from: &[f32]) {
    if let (Some(to), Some(from)) = (to.first_chunk_mut::<N>(), from.first_chunk::<N>()) {
        for i in 0..N {
            to[i] += from[i];
        }
    }
}

/// Some rows of pixels of one sample, or all of some samples.
pub(super) struct Task<'a> {
    /// The first sample.
    pub(super) first: usize,
    /// Rows of the output.
    pub(super) rows: Range<usize>,
    /// For each sample the output's pixels by its channels.
    pub(super) maps: Vec<MatMut<'a, f32>>,
}

/// The output `y` in tasks of `together` samples or, of one, `tile` rows.
pub(super) fn tasks<'a>(
    y: &'a mut [f32],
    outs: usize,
    sizes: &Sizes,
    tile: usize,
    together: usize,
) -> Vec<Task<'a>> {
    let pixels = sizes.pixels();
    let mut tasks = Vec::new();
    for (group, y) in y.chunks_mut(together * outs * pixels).enumerate() {
        let maps = y.chunks_mut(outs * pixels);
        let mut maps: Vec<_> = maps.map(|y| rows_of_mut(y, outs, pixels).transpose_mut()).collect();
        let (first, whole) = (group * together, 0..sizes.out[0]);
        match maps.pop() {
            Some(mut map) if maps.is_empty() => {
                for top in whole.step_by(tile) {
                    let rows = top..(top + tile).min(sizes.out[0]);
                    let (part, rest) = map.split_at_row_mut(rows.len() * sizes.out[1]);
                    tasks.push(Task { first, rows, maps: vec![part] });
                    map = rest;
                }
            }
            last => {
                maps.extend(last);
                tasks.push(Task { first, rows: whole, maps });
            }
        }
    }
    tasks
}

/// The convolution of `x` `[b, c, h, w]` with `weight` `[o, c, kh, kw]`.
pub(super) fn forward(x: &Flat, weight: &Flat, options: &ConvOptions<2>) -> Flat {
    let ([batch, c, h, w], [outs, _, kh, kw]) = (x.shape().dims(), weight.shape().dims());
    let sizes = Sizes::new([c, h, w], [kh, kw], options);
    if winograd::suits(&sizes, batch, outs) {
        return winograd::convolve(x, weight, &sizes, Way::Forward);
    }
    let (depth, pixels) = (sizes.depth(), sizes.pixels());
    let [x, weight] = [x, weight].map(Flat::to_contiguous);
    let (x, weight) = (values(&x), rows_of(values(&weight), outs, depth));
    let mut y = vec![0.0; batch * outs * pixels];
    let todo = tasks(&mut y, outs, &sizes, sizes.tile(), sizes.together(batch));
    run(todo, batch * outs * depth * pixels, |Task { first, rows, mut maps }| {
        let count = rows.len() * sizes.out[1];
        let stride = maps.len() * count;
        let joined = if maps.len() > 1 { outs * stride } else { 0 };
        let lengths = [sizes.band(rows.len()), depth * stride, joined];
        scratch(lengths, |[band, columns, joined]| {
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
    tensor(y, [batch, outs, sizes.out[0], sizes.out[1]])
}

/// The gradient of [`forward`] by its input of `height` and `width` from that of its value.
pub(super) fn gradient(
    dy: &Flat,
    weight: &Flat,
    [height, width]: [usize; 2],
    options: &ConvOptions<2>,
) -> Flat {
    let ([batch, _, h, w], [outs, c, kh, kw]) = (dy.shape().dims(), weight.shape().dims());
    let padding = options.padding_begin();
    if options.stride == [1, 1] && padding[0] < kh && padding[1] < kw {
        let rest = [kh - 1 - padding[0], kw - 1 - padding[1]];
        let sizes = Sizes::new([outs, h, w], [kh, kw], &ConvOptions::new([1, 1], rest, [1, 1], 1));
        if winograd::suits(&sizes, batch, c) {
            return winograd::convolve(dy, weight, &sizes, Way::Backward);
        }
    }
    let sizes = Sizes::new([c, height, width], [kh, kw], options);
    let (depth, pixels, size) = (sizes.depth(), sizes.pixels(), c * height * width);
    let [dy, weight] = [dy, weight].map(Flat::to_contiguous);
    let (dy, weight) = (values(&dy), rows_of(values(&weight), outs, depth));
    let mut dx = vec![0.0; batch * size];
    let (tile, together) = (sizes.tile(), sizes.together(batch));
    let tasks = dy.chunks(together * outs * pixels).zip(dx.chunks_mut(together * size)).collect();
    run(tasks, batch * outs * depth * pixels, |(dy, dx): (&[f32], &mut [f32])| {
        let samples = dx.len() / size;
        // Several samples are taken whole.
        let tile = if samples > 1 { sizes.out[0] } else { tile };
        let most = samples * tile * sizes.out[1];
        let lengths = [sizes.band(tile), depth * most, outs * most];
        scratch(lengths, |[band, columns, joined]| {
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
    tensor(dx, [batch, c, height, width])
}
