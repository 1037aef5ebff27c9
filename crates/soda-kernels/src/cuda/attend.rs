//! Attention in tiles, by the kernels of `attention.cu`, or of `hopper.cu` where the device is one of those.

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::images::{self, Image, Target};
use super::launch::empty;
use super::session;
use super::{Cube, on_cuda};

/// Heads of no more than this width: beyond it a block's rows no longer fit in registers.
const WIDEST: usize = 128;
/// Up to this width a block has twice as many rows in the forward pass.
const NARROW: usize = 64;
/// Threads of a block, and the queries or keys that it has.
const THREADS: usize = 128;
const ROWS: usize = 64;
/// Numbers that are read at once.
const AT_ONCE: usize = 8;
const SOURCE: &str = concat!(include_str!("heads.cu"), include_str!("attention.cu"));
/// `mma.sync` on bfloat16, `cp.async`.
const TARGET: Target = Target::From((8, 0));
const HOPPER_SOURCE: &str = concat!(include_str!("heads.cu"), include_str!("hopper.cu"));
/// `wgmma`.
const HOPPER: Target = Target::Only((9, 0));
/// Widths of heads that `hopper.cu` is written for.
const HOPPER_WIDTHS: [usize; 2] = [48, 64];
/// What its kernel over the queries has of shared memory: eight tiles of 64 rows of 128 bytes, two numbers for each of three
/// times 64 queries, and room to begin at a multiple of 1024.
const HOPPER_SHARED: usize = 8 * 64 * 128 + 6 * 64 * 4 + 1024;

/// An attention that the kernels take.
pub(super) struct Attend {
    image: Image,
    hopper: bool,
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    width: usize,
    scale: f64,
}

impl Attend {
    /// `softmax(scale q k') v` for `[b, heads, n, d]` and `[b, heads, m, d]`; `None` where the kernels do not take it.
    pub(super) fn new(q: &CubeTensor, k: &CubeTensor, v: &CubeTensor, scale: f64) -> Option<Self> {
        let ([batch, heads, queries, width], [_, _, keys, _]) =
            (q.shape().dims::<4>(), k.shape().dims::<4>());
        let half = q.dtype != DType::F32 && [k, v].iter().all(|x| x.dtype == q.dtype);
        let fits = width.is_multiple_of(AT_ONCE) && (1..=WIDEST).contains(&width);
        let some = batch * heads * queries * keys > 0;
        if !(on_cuda(q) && half && fits && some) {
            return None;
        }
        let padded = width.next_multiple_of(16);
        let compiled = |source, target| images::image(source, q.dtype, padded, target);
        let hopper = HOPPER_WIDTHS.contains(&padded).then(|| compiled(HOPPER_SOURCE, HOPPER));
        let (image, hopper) = match hopper.flatten() {
            Some(image) => (image, true),
            None => (compiled(SOURCE, TARGET)?, false),
        };
        Some(Self { image, hopper, batch, heads, queries, keys, width, scale })
    }

    /// Room for the logarithms of each query's sum, `[b, heads, n]`.
    pub(super) fn logs(&self, q: &CubeTensor) -> CubeTensor {
        empty(q, vec![self.batch, self.heads, self.queries], DType::F32)
    }

    /// `[b, heads, n, d]`, and the logarithms.
    pub(super) fn forward(&self, qkv: [CubeTensor; 3], logs: Option<&CubeTensor>) -> CubeTensor {
        let [q, k, v] = qkv.map(readable);
        let out = self.rows(&q, self.queries);
        let rows = if self.width <= NARROW { 2 * ROWS } else { ROWS };
        let grid = [self.queries.div_ceil(rows), self.batch * self.heads];
        let (image, sizes) = (self.image, self.sizes([&q, &k, &v], &[]));
        let threads = if self.hopper { 2 * THREADS } else { THREADS };
        let (keep, to) = (logs.is_some(), logs.unwrap_or(&out));
        session::submit([&q, &k, &v, &out, to], move |session, [q, k, v, out, logs]| {
            // Where nothing is to be kept, its address is not looked at.
            let logs = if keep { logs } else { 0 };
            let arguments = [q, k, v, out, logs].into_iter().chain(sizes).collect();
            session.launch_of(image, "attend", grid, threads, 0, arguments)
        });
        Cube::float_swap_dims(out, 1, 2)
    }

    /// By q, k and v, from the value and the logarithms that [`Attend::forward`] gave.
    pub(super) fn gradient(
        &self,
        qkv: [CubeTensor; 3],
        grad: CubeTensor,
        value: CubeTensor,
        logs: &CubeTensor,
    ) -> [CubeTensor; 3] {
        let [q, k, v] = qkv.map(readable);
        let grad = readable(grad);
        let value = into_contiguous(Cube::float_swap_dims(value, 1, 2));
        let delta = self.logs(&q);
        let [dq, dk, dv] = [self.queries, self.keys, self.keys].map(|rows| self.rows(&q, rows));
        let heads = self.batch * self.heads;
        let [by_queries, by_keys] =
            [self.queries, self.keys].map(|rows| [rows.div_ceil(ROWS), heads]);
        let (image, sizes) = (self.image, self.sizes([&q, &k, &v], &[&grad]));
        let shared = if self.hopper { HOPPER_SHARED } else { 0 };
        session::submit(
            [&q, &k, &v, &grad, &value, logs, &delta, &dq, &dk, &dv],
            move |session, [q, k, v, grad, value, logs, delta, dq, dk, dv]| {
                let tensors = [q, k, v, grad, value, logs, delta, dq];
                let arguments = tensors.into_iter().chain(sizes.iter().copied()).collect();
                session.launch_of(image, "attend_by_queries", by_queries, THREADS, 0, arguments)?;
                let tensors = [q, k, v, grad, logs, delta, dk, dv];
                let arguments = tensors.into_iter().chain(sizes).collect();
                session.launch_of(image, "attend_by_keys", by_keys, THREADS, shared, arguments)
            },
        );
        [dq, dk, dv].map(|x| Cube::float_swap_dims(x, 1, 2))
    }

    /// `[b, rows, heads, d]`: in the order in which the next layer reads it.
    fn rows(&self, like: &CubeTensor, rows: usize) -> CubeTensor {
        empty(like, vec![self.batch, rows, self.heads, self.width], like.dtype)
    }

    /// Sizes, steps and the scale, as all kernels take them.
    fn sizes(&self, qkv: [&CubeTensor; 3], grad: &[&CubeTensor]) -> Vec<u64> {
        let sizes = [self.queries, self.keys, self.width, self.heads];
        let steps = qkv.iter().chain(grad).flat_map(|x| {
            let steps = x.meta.strides();
            [steps[0], steps[1], steps[2]]
        });
        let all = sizes.into_iter().chain(steps).map(|size| size as u64);
        all.chain([u64::from((self.scale as f32).to_bits())]).collect()
    }
}

/// `x` as it lies, or a copy where rows do not begin at 16 bytes.
fn readable(x: CubeTensor) -> CubeTensor {
    let steps = x.meta.strides();
    let even = steps[..3].iter().all(|step| step.is_multiple_of(AT_ONCE)) && steps[3] == 1;
    let begins = x.handle.offset_start.unwrap_or(0).is_multiple_of(16);
    if even && begins { x } else { into_contiguous(x) }
}
