//! Calls of the kernels in `kernels.cu`.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw};
use burn_cubecl::tensor::CubeTensor;

use super::session;

/// Numbers of a row that one thread of a row kernel can hold.
const HELD: usize = 16;
/// The longest row that the row kernels take.
pub(super) const LONGEST_ROW: usize = 1024 * HELD;
/// Rows that a block takes where each has a warp.
const WARPS: usize = 4;
/// Threads of a block that adds up groups, and pixels that each thread of it does.
const SUMMING: usize = 512;
const PIXELS: usize = 4;

/// The kernel of a name for a type.
macro_rules! kernel {
    ($name:literal, $dtype:expr) => {
        match $dtype {
            DType::BF16 => concat!($name, "_bf16"),
            DType::F16 => concat!($name, "_f16"),
            _ => concat!($name, "_f32"),
        }
    };
}

pub(super) fn like(x: &CubeTensor) -> CubeTensor {
    empty(x, x.shape().to_vec(), x.dtype)
}

pub(super) fn empty(x: &CubeTensor, shape: Vec<usize>, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape.into(), dtype)
}

/// Rows, their length, and threads for one of them.
fn rows(x: &CubeTensor) -> (usize, usize, usize) {
    let shape = x.shape();
    let length = shape[shape.num_dims() - 1];
    let threads = length.div_ceil(HELD).next_power_of_two().clamp(128, 1024);
    // A short row needs no more than a warp.
    let threads = if length <= 32 * 4 { 32 } else { threads };
    (shape.num_elements() / length.max(1), length, threads)
}

/// Whether a warp can hold a row of so many numbers at these addresses, or-ed: packs of 16 bytes, five a lane.
fn fits_a_warp(length: usize, width: usize, addresses: u64) -> bool {
    let bytes = length * width;
    bytes.is_multiple_of(16) && bytes <= 5 * 32 * 16 && addresses.is_multiple_of(16)
}

/// softmax over the first `keys` of the last axis; the others become 0.
pub(super) fn softmax(x: CubeTensor, keys: usize) -> CubeTensor {
    let x = into_contiguous(x);
    let (y, name) = (like(&x), kernel!("softmax", x.dtype));
    let (rows, length, threads) = rows(&x);
    session::submit([&x, &y], move |session, [x, y]| {
        session.launch(name, [rows, 1], threads, 0, vec![x, y, length as u64, keys as u64])
    });
    y
}

/// Its gradient from its value.
pub(super) fn softmax_gradient(p: CubeTensor, dp: CubeTensor) -> CubeTensor {
    let (p, dp) = (into_contiguous(p), into_contiguous(dp));
    let (dx, name) = (like(&p), kernel!("softmax_gradient", p.dtype));
    let (rows, length, threads) = rows(&p);
    session::submit([&p, &dp, &dx], move |session, [p, dp, dx]| {
        session.launch(name, [rows, 1], threads, 0, vec![p, dp, dx, length as u64])
    });
    dx
}

/// Layer norm over the last axis.
pub(super) fn layer_norm(
    x: CubeTensor,
    gamma: CubeTensor,
    beta: CubeTensor,
    eps: f32,
) -> CubeTensor {
    let [x, gamma, beta] = [x, gamma, beta].map(into_contiguous);
    let (y, name) = (like(&x), kernel!("layer_norm", x.dtype));
    let (rows, length, threads) = rows(&x);
    let in_warps = kernel!("layer_norm_in_warps", x.dtype);
    let width = x.dtype.size();
    session::submit([&x, &gamma, &beta, &y], move |session, [x, gamma, beta, y]| {
        let mut arguments = vec![x, gamma, beta, y, length as u64, bits(eps)];
        if fits_a_warp(length, width, x | gamma | beta | y) {
            arguments.push(rows as u64);
            return session.launch(in_warps, [rows.div_ceil(WARPS), 1], 32 * WARPS, 0, arguments);
        }
        session.launch(name, [rows, 1], threads, 0, arguments)
    });
    y
}

/// Its gradient by `x`.
pub(super) fn layer_norm_gradient(
    x: CubeTensor,
    dy: CubeTensor,
    gamma: CubeTensor,
    eps: f32,
) -> CubeTensor {
    let [x, dy, gamma] = [x, dy, gamma].map(into_contiguous);
    let (dx, name) = (like(&x), kernel!("layer_norm_gradient", x.dtype));
    let (rows, length, threads) = rows(&x);
    let in_warps = kernel!("layer_norm_gradient_in_warps", x.dtype);
    let width = x.dtype.size();
    session::submit([&x, &dy, &gamma, &dx], move |session, [x, dy, gamma, dx]| {
        let mut arguments = vec![x, dy, gamma, dx, length as u64, bits(eps)];
        if fits_a_warp(length, width, x | dy | gamma | dx) {
            arguments.push(rows as u64);
            return session.launch(in_warps, [rows.div_ceil(WARPS), 1], 32 * WARPS, 0, arguments);
        }
        session.launch(name, [rows, 1], threads, 0, arguments)
    });
    dx
}

/// `a gelu(b)` for rows `(a, b)`, to which the bias is added first.
pub(super) fn geglu(x: CubeTensor, bias: Option<CubeTensor>) -> CubeTensor {
    let (x, bias) = (into_contiguous(x), bias.map(into_contiguous));
    let mut shape = x.shape().to_vec();
    let last = shape.len() - 1;
    shape[last] /= 2;
    let (c, n) = (shape[last], shape.iter().product::<usize>());
    let (y, name) = (empty(&x, shape, x.dtype), kernel!("geglu", x.dtype));
    let biased = bias.is_some();
    session::submit([&x, bias.as_ref().unwrap_or(&x), &y], move |session, [x, bias, y]| {
        // Where there is none, its address is not looked at.
        let bias = if biased { bias } else { 0 };
        session.launch(name, [blocks(n), 1], 256, 0, vec![x, bias, y, c as u64, n as u64])
    });
    y
}

/// Its gradient by `x`.
pub(super) fn geglu_gradient(
    x: CubeTensor,
    bias: Option<CubeTensor>,
    dy: CubeTensor,
) -> CubeTensor {
    let (x, dy, bias) = (into_contiguous(x), into_contiguous(dy), bias.map(into_contiguous));
    let shape = dy.shape();
    let (c, n) = (shape[shape.num_dims() - 1], shape.num_elements());
    let (dx, name) = (like(&x), kernel!("geglu_gradient", x.dtype));
    let (biased, given) = (bias.is_some(), bias.as_ref().unwrap_or(&x));
    session::submit([&x, given, &dy, &dx], move |session, [x, bias, dy, dx]| {
        let bias = if biased { bias } else { 0 };
        session.launch(name, [blocks(n), 1], 256, 0, vec![x, bias, dy, dx, c as u64, n as u64])
    });
    dx
}

/// Two tensors of float32 in a half precision.
pub(super) fn both_narrow(a: CubeTensor, b: CubeTensor, to: DType) -> (CubeTensor, CubeTensor) {
    let [a, b] = [a, b].map(into_contiguous);
    let [x, y] = [&a, &b].map(|from| empty(from, from.shape().to_vec(), to));
    let [n, m] = [&a, &b].map(|from| from.shape().num_elements());
    let name = kernel!("both_narrow", to);
    session::submit([&a, &b, &x, &y], move |session, [a, b, x, y]| {
        let arguments = vec![a, b, x, y, n as u64, m as u64];
        session.launch(name, [blocks(n.max(m)), 2], 256, 0, arguments)
    });
    (x, y)
}

/// `x + bias + rest`: `x` `[.., c]`, whose rows are so many times those of `bias` `[k, c]`. In the place of `x`, if nobody else needs it.
pub(super) fn plus(x: CubeTensor, bias: CubeTensor, rest: Option<CubeTensor>) -> CubeTensor {
    let (x, bias, rest) = (into_contiguous(x), into_contiguous(bias), rest.map(into_contiguous));
    let y = if x.can_mut() { x.clone() } else { like(&x) };
    let ([k, c], n, name) =
        (bias.shape().dims(), x.shape().num_elements(), kernel!("plus", x.dtype));
    let (all, given) = (rest.is_some(), rest.as_ref().unwrap_or(&x));
    session::submit([&x, &bias, given, &y], move |session, [x, bias, rest, y]| {
        // Where there is none, its address is not looked at.
        let rest = if all { rest } else { 0 };
        let arguments = vec![x, bias, rest, y, c as u64, (n / k) as u64, n as u64];
        session.launch(name, [blocks(n), 1], 256, 0, arguments)
    });
    y
}

/// The channels of two maps `[b, c, h, w]`, those of a pixel together.
pub(super) fn join(a: CubeTensor, b: CubeTensor) -> CubeTensor {
    let [a, b] = [a, b].map(|map| into_contiguous(permute_nchw_to_nhwc(map)));
    let ([batch, height, width, first], [_, _, _, second]) =
        (a.shape().dims::<4>(), b.shape().dims::<4>());
    let y = empty(&a, vec![batch, height, width, first + second], a.dtype);
    let (rows, name) = (batch * height * width, kernel!("join", a.dtype));
    session::submit([&a, &b, &y], move |session, [a, b, y]| {
        let arguments = vec![a, b, y, first as u64, second as u64, rows as u64];
        session.launch(name, [blocks(rows * (first + second)), 1], 256, 0, arguments)
    });
    permute_nhwc_to_nchw(y)
}

/// The maps out of one, of which the first has so many `channels`.
pub(super) fn apart(y: CubeTensor, channels: usize) -> (CubeTensor, CubeTensor) {
    let y = into_contiguous(permute_nchw_to_nhwc(y));
    let [batch, height, width, all] = y.shape().dims::<4>();
    let map = |channels| empty(&y, vec![batch, height, width, channels], y.dtype);
    let (a, b) = (map(channels), map(all - channels));
    let (rows, name) = (batch * height * width, kernel!("apart", y.dtype));
    session::submit([&y, &a, &b], move |session, [y, a, b]| {
        let (first, second) = (channels as u64, (all - channels) as u64);
        let arguments = vec![y, a, b, first, second, rows as u64];
        session.launch(name, [blocks(rows * all), 1], 256, 0, arguments)
    });
    (permute_nhwc_to_nchw(a), permute_nhwc_to_nchw(b))
}

/// `l diag(max(gain, least))`.
pub(super) fn columns(l: CubeTensor, gain: CubeTensor, least: CubeTensor) -> CubeTensor {
    let [l, gain, least] = [l, gain, least].map(into_contiguous);
    let (y, name) = (like(&l), kernel!("columns", l.dtype));
    let (k, n) = (gain.shape().num_elements(), l.shape().num_elements());
    session::submit([&l, &gain, &least, &y], move |session, [l, gain, least, y]| {
        let arguments = vec![l, gain, least, y, k as u64, n as u64];
        // Some rows a thread, and at least a thread a column.
        let blocks = n.div_ceil(8192).max(k.div_ceil(256)).max(1);
        session.launch(name, [blocks, 1], 256, 0, arguments)
    });
    y
}

/// Its gradient by the gain.
pub(super) fn columns_gradient(
    l: CubeTensor,
    dy: CubeTensor,
    gain: CubeTensor,
    least: CubeTensor,
) -> CubeTensor {
    let [l, dy, gain, least] = [l, dy, gain, least].map(into_contiguous);
    let (to, name) = (like(&gain), kernel!("columns_gradient", l.dtype));
    let width = l.dtype.size();
    let k = gain.shape().num_elements();
    let rows = l.shape().num_elements() / k.max(1);
    session::submit([&l, &dy, &gain, &least, &to], move |session, [l, dy, gain, least, to]| {
        let arguments = vec![l, dy, gain, least, to, rows as u64, k as u64];
        // Two packs of columns a block, of 16 bytes where rows can be read so.
        let packed = (k * width).is_multiple_of(16) && (l | dy).is_multiple_of(16);
        let packs = if packed { k * width / 16 } else { k };
        session.launch(name, [packs.div_ceil(2).max(1), 1], 512, 0, arguments)
    });
    to
}

/// A group norm on `[b, c, h, w]`, with silu after it or without.
pub(super) struct GroupNorm {
    pub(super) groups: usize,
    pub(super) eps: f32,
    pub(super) silu: bool,
}

impl GroupNorm {
    /// The value, and mean and deviation of each group.
    pub(super) fn forward(
        &self,
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let x = into_contiguous(permute_nchw_to_nhwc(x));
        let [gamma, beta] = [gamma, beta].map(into_contiguous);
        let sizes = Sizes::of(&x, self.groups);
        let [partial, stats] = sizes.scratch(&x);
        let y = like(&x);
        let (sums, means) = (kernel!("group_sums", x.dtype), kernel!("group_stats", x.dtype));
        let (name, eps, act) = (kernel!("group_norm", x.dtype), bits(self.eps), self.silu.into());
        session::submit(
            [&x, &gamma, &beta, &y, &partial, &stats],
            move |session, [x, gamma, beta, y, partial, stats]| {
                let s = sizes;
                let arguments = vec![x, partial, s.pixels, s.channels, s.groups, s.each];
                session.launch(sums, s.parts_grid(), SUMMING, s.shared(), arguments)?;
                let arguments =
                    vec![x, partial, stats, s.pixels, s.channels, s.groups, s.parts, eps];
                session.launch(means, s.groups_grid(), 128, 0, arguments)?;
                let arguments = vec![x, stats, gamma, beta, y, s.pixels, s.channels, s.groups, act];
                session.launch(name, s.grid(), 256, 0, arguments)
            },
        );
        (permute_nhwc_to_nchw(y), stats)
    }

    /// The gradient, with the means and deviations `stats`.
    pub(super) fn gradient(
        &self,
        x: CubeTensor,
        dy: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        stats: CubeTensor,
    ) -> CubeTensor {
        let [x, dy] = [x, dy].map(|map| into_contiguous(permute_nchw_to_nhwc(map)));
        let [gamma, beta] = [gamma, beta].map(into_contiguous);
        let sizes = Sizes::of(&x, self.groups);
        let [partial, means] = sizes.scratch(&x);
        let dx = like(&x);
        let (slopes, name) =
            (kernel!("group_gradient_sums", x.dtype), kernel!("group_gradient", x.dtype));
        let act = self.silu.into();
        session::submit(
            [&x, &dy, &gamma, &beta, &dx, &partial, &stats, &means],
            move |session, [x, dy, gamma, beta, dx, partial, stats, means]| {
                let s = sizes;
                let arguments = vec![
                    x, dy, stats, gamma, beta, partial, s.pixels, s.channels, s.groups, s.each, act,
                ];
                session.launch(slopes, s.parts_grid(), SUMMING, s.shared(), arguments)?;
                let arguments = vec![partial, means, s.pixels, s.channels, s.groups, s.parts];
                session.launch("group_means_f32", s.groups_grid(), 128, 0, arguments)?;
                let arguments =
                    vec![x, dy, stats, means, gamma, beta, dx, s.pixels, s.channels, s.groups, act];
                session.launch(name, s.grid(), 256, 0, arguments)
            },
        );
        permute_nhwc_to_nchw(dx)
    }
}

/// Sizes of a channels-last map, as kernels take them.
#[derive(Clone, Copy)]
struct Sizes {
    batch: u64,
    pixels: u64,
    channels: u64,
    groups: u64,
    /// Pixels of a block, and blocks.
    each: u64,
    parts: u64,
    /// Bytes of a number.
    width: usize,
}

impl Sizes {
    fn of(x: &CubeTensor, groups: usize) -> Self {
        let [batch, height, width, channels] = x.shape().dims::<4>().map(|size| size as u64);
        let pixels = height * width;
        let (width, groups) = (x.dtype.size(), groups as u64);
        // A thread reads 16 bytes at once.
        let lanes = (channels as usize * width).div_ceil(16);
        let each = (PIXELS * (SUMMING / lanes).max(1)) as u64;
        let parts = pixels.div_ceil(each);
        Self { batch, pixels, channels, groups, each, parts, width }
    }

    /// Sums by block, and by group.
    fn scratch(&self, x: &CubeTensor) -> [CubeTensor; 2] {
        let pairs = (2 * self.batch * self.groups) as usize;
        [pairs * self.parts as usize, pairs].map(|size| empty(x, vec![size], DType::F32))
    }

    fn parts_grid(&self) -> [usize; 2] {
        [self.parts as usize, self.batch as usize]
    }

    fn groups_grid(&self) -> [usize; 2] {
        [self.groups as usize, self.batch as usize]
    }

    fn grid(&self) -> [usize; 2] {
        [blocks((self.pixels * self.channels) as usize), self.batch as usize]
    }

    /// Two floats for each channel that a block sums, of each pixel that it is at.
    fn shared(&self) -> usize {
        8 * (self.channels as usize).max(SUMMING * 16 / self.width)
    }
}

/// Blocks of 256 threads for `n` numbers; a thread of a larger tensor takes several.
pub(super) fn blocks(n: usize) -> usize {
    n.div_ceil(1024).clamp(1, 8192)
}

/// A float as a kernel's argument.
pub(super) fn bits(value: f32) -> u64 {
    value.to_bits().into()
}
