//! Attention in tiles that never leave the chip (`attention.cu`, and `attention_sm90.cu` for compute
//! capability 9.0).

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::cuda::nvrtc::{self, Image, Target};
use crate::cuda::sources::Source;
use crate::cuda::stream;
use crate::cuda::support::{Cube, empty, on_cuda};

/// The largest width of a head. The rows of a wider head do not fit in registers.
const MAX_WIDTH: usize = 128;
/// Up to this width a block has twice as many rows in the forward pass.
const MAX_WIDTH_OF_DOUBLE_ROWS: usize = 64;
/// The threads of a block, and its queries or keys.
const THREADS: usize = 128;
const ROWS: usize = 64;
/// The elements of one read of 16 bytes.
const ELEMENTS_PER_READ: usize = 8;
/// `mma.sync` on bfloat16, and `cp.async`.
const TARGET: Target = Target::AtLeast((8, 0));
/// `wgmma`.
const SM90: Target = Target::Exactly((9, 0));
/// The padded widths that `attention_sm90.cu` is written for.
const SM90_WIDTHS: [usize; 2] = [48, 64];
/// The shared memory of its kernel for the gradients by keys. It holds eight tiles of 64 rows of 128 bytes,
/// two floats for each of three times 64 queries, and room for an alignment to 1024 bytes.
const SM90_SHARED: usize = 8 * 64 * 128 + 6 * 64 * 4 + 1024;

/// The kernels for an attention, and its sizes.
pub(crate) struct Attention {
    image: Image,
    sm90: bool,
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    width: usize,
    scale: f64,
}

impl Attention {
    /// The attention `softmax(scale q k') v` for `[b, heads, n, d]` and `[b, heads, m, d]`. `None` if no
    /// kernel takes it.
    pub(crate) fn new(q: &CubeTensor, k: &CubeTensor, v: &CubeTensor, scale: f64) -> Option<Self> {
        let ([batch, heads, queries, width], [_, _, keys, _]) =
            (q.shape().dims::<4>(), k.shape().dims::<4>());
        let half = matches!(q.dtype, DType::F16 | DType::BF16)
            && [k, v].iter().all(|x| x.dtype == q.dtype);
        let fits = width.is_multiple_of(ELEMENTS_PER_READ) && (1..=MAX_WIDTH).contains(&width);
        let not_empty = batch * heads * queries * keys > 0;
        if !(on_cuda(q) && half && fits && not_empty) {
            return None;
        }
        let padded = width.next_multiple_of(16);
        let compiled = |source, target| nvrtc::image(source, q.dtype, padded, target);
        let sm90 =
            SM90_WIDTHS.contains(&padded).then(|| compiled(Source::AttentionSm90, SM90)).flatten();
        let (image, sm90) = match sm90 {
            Some(image) => (image, true),
            None => (compiled(Source::Attention, TARGET)?, false),
        };
        Some(Self { image, sm90, batch, heads, queries, keys, width, scale })
    }

    /// Room for the log-sum-exp (base 2) of each query's scores, `[b, heads, n]`.
    pub(crate) fn empty_logsumexp(&self, q: &CubeTensor) -> CubeTensor {
        empty(q, vec![self.batch, self.heads, self.queries], DType::F32)
    }

    /// The attention `[b, heads, n, d]`. Writes the log-sum-exp of each query if there is room for it.
    pub(crate) fn forward(
        &self,
        qkv: [CubeTensor; 3],
        logsumexp: Option<&CubeTensor>,
    ) -> CubeTensor {
        let [q, k, v] = qkv.map(readable);
        let out = self.empty_rows(&q, self.queries);
        let rows = if self.width <= MAX_WIDTH_OF_DOUBLE_ROWS { 2 * ROWS } else { ROWS };
        let grid = [self.queries.div_ceil(rows), self.batch * self.heads];
        let (image, sizes) = (self.image, self.arguments([&q, &k, &v], &[]));
        let threads = if self.sm90 { 2 * THREADS } else { THREADS };
        let (saves, to) = (logsumexp.is_some(), logsumexp.unwrap_or(&out));
        stream::submit([&q, &k, &v, &out, to], move |context, [q, k, v, out, logsumexp]| {
            // A null pointer tells the kernel not to write the log-sum-exp.
            let logsumexp = if saves { logsumexp } else { 0 };
            let arguments = [q, k, v, out, logsumexp].into_iter().chain(sizes).collect();
            let name = entry!("attention_forward");
            context.launcher.launch_in(image, name, grid, threads, 0, arguments)
        });
        Cube::float_swap_dims(out, 1, 2)
    }

    /// The gradients by q, k and v, from the value and the log-sum-exp of [`Attention::forward`].
    pub(crate) fn gradient(
        &self,
        qkv: [CubeTensor; 3],
        grad: CubeTensor,
        value: CubeTensor,
        logsumexp: &CubeTensor,
    ) -> [CubeTensor; 3] {
        let [q, k, v] = qkv.map(readable);
        let grad = readable(grad);
        let value = into_contiguous(Cube::float_swap_dims(value, 1, 2));
        let delta = self.empty_logsumexp(&q);
        let [dq, dk, dv] =
            [self.queries, self.keys, self.keys].map(|rows| self.empty_rows(&q, rows));
        let heads = self.batch * self.heads;
        let [query_grid, key_grid] =
            [self.queries, self.keys].map(|rows| [rows.div_ceil(ROWS), heads]);
        let (image, sizes) = (self.image, self.arguments([&q, &k, &v], &[&grad]));
        let shared = if self.sm90 { SM90_SHARED } else { 0 };
        stream::submit(
            [&q, &k, &v, &grad, &value, logsumexp, &delta, &dq, &dk, &dv],
            move |context, [q, k, v, grad, value, logsumexp, delta, dq, dk, dv]| {
                let launcher = &mut context.launcher;
                let tensors = [q, k, v, grad, value, logsumexp, delta, dq];
                let arguments = tensors.into_iter().chain(sizes.iter().copied()).collect();
                let name = entry!("attention_gradient_queries");
                launcher.launch_in(image, name, query_grid, THREADS, 0, arguments)?;
                let tensors = [q, k, v, grad, logsumexp, delta, dk, dv];
                let arguments = tensors.into_iter().chain(sizes).collect();
                let name = entry!("attention_gradient_keys");
                launcher.launch_in(image, name, key_grid, THREADS, shared, arguments)
            },
        );
        [dq, dk, dv].map(|x| Cube::float_swap_dims(x, 1, 2))
    }

    /// An uninitialized `[b, rows, heads, d]`, the order in which the next layer reads it.
    fn empty_rows(&self, like: &CubeTensor, rows: usize) -> CubeTensor {
        empty(like, vec![self.batch, rows, self.heads, self.width], like.dtype)
    }

    /// The sizes, strides and scale, as all kernels take them.
    fn arguments(&self, qkv: [&CubeTensor; 3], grad: &[&CubeTensor]) -> Vec<u64> {
        let sizes = [self.queries, self.keys, self.width, self.heads];
        let strides = qkv.iter().chain(grad).flat_map(|x| {
            let strides = x.meta.strides();
            [strides[0], strides[1], strides[2]]
        });
        let all = sizes.into_iter().chain(strides).map(|size| size as u64);
        all.chain([u64::from((self.scale as f32).to_bits())]).collect()
    }
}

/// Returns `x`, or a contiguous copy if its rows are not aligned to 16 bytes.
fn readable(x: CubeTensor) -> CubeTensor {
    let strides = x.meta.strides();
    let aligned_strides = strides[..3].iter().all(|step| step.is_multiple_of(ELEMENTS_PER_READ));
    let aligned_start = x.handle.offset_start.unwrap_or(0).is_multiple_of(16);
    if aligned_strides && strides[3] == 1 && aligned_start { x } else { into_contiguous(x) }
}
