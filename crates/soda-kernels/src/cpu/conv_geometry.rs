//! The sizes of a convolution, its padded bands of rows, and the tasks of its output.

use std::ops::Range;

use burn::tensor::ops::ConvOptions;
use faer::MatMut;

use super::matrices::rows_of_mut;

/// The largest number of elements in the columns of a task, unless one row of pixels has more: one MiB.
const MAX_COLUMNS: usize = 1 << 18;
/// A product with fewer columns than this is slow.
const MIN_COLUMNS: usize = 64;

/// The sizes of a convolution of maps `[channels, height, width]`.
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

    /// The number of rows of the column matrix.
    pub(super) fn depth(&self) -> usize {
        self.channels * self.kernel[0] * self.kernel[1]
    }

    /// The number of pixels of the output.
    pub(super) fn pixels(&self) -> usize {
        self.out[0] * self.out[1]
    }

    /// The number of pixel rows in a task.
    pub(super) fn tile(&self) -> usize {
        let tiles = (self.depth() * self.pixels()).div_ceil(MAX_COLUMNS).max(1);
        self.out[0].div_ceil(tiles).max(1)
    }

    /// The number of samples in a task.
    pub(super) fn samples_per_task(&self, batch: usize) -> usize {
        MIN_COLUMNS.div_ceil(self.pixels()).min(batch)
    }

    /// The number of elements of the padded input that `rows` output rows read.
    pub(super) fn band(&self, rows: usize) -> usize {
        self.channels * self.band_rows(rows) * self.band_width()
    }

    fn band_rows(&self, rows: usize) -> usize {
        (rows - 1) * self.stride[0] + self.kernel[0]
    }

    fn band_width(&self) -> usize {
        self.width + 2 * self.padding[1]
    }

    /// The input rows in the band of the output rows `rows`, and the index in the band of the first of them.
    fn inside(&self, rows: &Range<usize>) -> (Range<usize>, usize) {
        let top = rows.start * self.stride[0];
        let first = top.saturating_sub(self.padding[0]);
        let end = (top + self.band_rows(rows.len())).saturating_sub(self.padding[0]);
        (first..end.min(self.height), first + self.padding[0] - top)
    }

    /// Copies the part of `image` that the output rows `rows` read, with padding, into `band`.
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

    /// Adds a band to its part of the image.
    pub(super) fn add_band(&self, band: &[f32], rows: &Range<usize>, image: &mut [f32]) {
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

    /// Calls `f` for each run of pixels with its range in the columns, whose rows are `stride` long, and in
    /// the band.
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
    pub(super) fn gather(&self, band: &[f32], rows: usize, columns: &mut [f32], stride: usize) {
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
                    // Constant lengths, those of small latents, compile to moves instead of calls.
                    4 => copy::<4>(column, seen),
                    8 => copy::<8>(column, seen),
                    16 => copy::<16>(column, seen),
                    32 => copy::<32>(column, seen),
                    _ => column.copy_from_slice(seen),
                }
            },
        );
    }

    /// Adds columns to their places in the band.
    #[inline(always)]
    pub(super) fn scatter(&self, columns: &[f32], stride: usize, rows: usize, band: &mut [f32]) {
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

/// Some pixel rows of one sample, or all rows of several samples.
pub(super) struct Task<'a> {
    /// The first sample.
    pub(super) first: usize,
    /// The rows of the output.
    pub(super) rows: Range<usize>,
    /// For each sample a matrix of output pixels by output channels.
    pub(super) maps: Vec<MatMut<'a, f32>>,
}

/// Splits the output `y` into tasks of `samples_per_task` samples, or of `tile` rows if that is one sample.
pub(super) fn tasks<'a>(
    y: &'a mut [f32],
    outs: usize,
    sizes: &Sizes,
    tile: usize,
    samples_per_task: usize,
) -> Vec<Task<'a>> {
    let pixels = sizes.pixels();
    let mut tasks = Vec::new();
    for (group, y) in y.chunks_mut(samples_per_task * outs * pixels).enumerate() {
        let maps = y.chunks_mut(outs * pixels);
        let mut maps: Vec<_> = maps.map(|y| rows_of_mut(y, outs, pixels).transpose_mut()).collect();
        let (first, whole) = (group * samples_per_task, 0..sizes.out[0]);
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
