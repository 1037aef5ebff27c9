//! Attention in tiles that never leave the chip (`attention.cu`, and `attention_sm90.cu` for compute
//! capability 9.0).

mod heads;
pub(crate) mod parallel;
pub(crate) mod rms_norm_rotary;

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use self::heads::{ELEMENTS_PER_READ, Heads, offsets};
use crate::cuda::nvrtc::{self, Image, Target};
use crate::cuda::sources::Source;
use crate::cuda::stream;
use crate::cuda::support::{Cube, empty, on_cuda};

/// The largest width of a head. The rows of a wider head do not fit in registers.
const MAX_WIDTH: usize = 128;
/// `mma.sync` on bfloat16, and `cp.async`.
const TARGET: Target = Target::AtLeast((8, 0));
/// `wgmma`.
const SM90: Target = Target::Exactly((9, 0));
/// The padded widths that `attention_sm90.cu` is written for.
const SM90_WIDTHS: [usize; 3] = [48, 64, 128];

/// The blocks with which a card is busy, the fewest queries of a part, and the largest tile of queries.
const ENOUGH_BLOCKS: usize = 264;
const QUERIES_OF_A_PART: usize = 256;
const ROWS_OF_A_TILE: usize = 64;

/// The threads of a block, its queries or keys, and its dynamic shared memory in bytes.
#[derive(Clone, Copy)]
struct Blocks {
    threads: usize,
    rows: usize,
    shared: usize,
}

/// The blocks of the three kernels.
#[derive(Clone, Copy)]
struct Tiling {
    forward: Blocks,
    queries: Blocks,
    keys: Blocks,
}

impl Tiling {
    /// `attention.cu`: four warps of 16 rows, of 32 in the forward pass if registers allow it.
    fn mma(width: usize) -> Self {
        let block = |rows| Blocks { threads: 128, rows, shared: 0 };
        let forward = block(if width <= 64 { 128 } else { 64 });
        Self { forward, queries: block(64), keys: block(64) }
    }

    /// `attention_sm90.cu`: a warpgroup of 64 rows, and two stages of tiles.
    fn wgmma(padded: usize) -> Self {
        const STAGES: usize = 2;
        // 64 rows, in one half or two of 128 bytes.
        let tile = 64 * 128 * if padded > 64 { 2 } else { 1 };
        // Room to begin at a multiple of 1024 bytes.
        let block = |bytes: usize| Blocks { threads: 128, rows: 64, shared: bytes + 1024 };
        Self {
            // The values have a stage more than the keys.
            forward: block((2 * STAGES + 1) * tile),
            queries: block(2 * STAGES * tile),
            // The block's own keys and values, and two floats for each of a stage's queries.
            keys: block((2 + 2 * STAGES) * tile + STAGES * 2 * 64 * 4),
        }
    }
}

/// The kernels for an attention, and its sizes.
pub(crate) struct Attention {
    image: Image,
    tiling: Tiling,
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
        let same = [k, v].iter().all(|x| x.dtype == q.dtype);
        same.then(|| Self::of_sizes(q, [batch, heads, queries, keys, width], scale)).flatten()
    }

    /// The attention of tensors like `like`, for samples, heads, queries, keys and channels of a head.
    fn of_sizes(like: &CubeTensor, sizes: [usize; 5], scale: f64) -> Option<Self> {
        let [batch, heads, queries, keys, width] = sizes;
        let half = matches!(like.dtype, DType::F16 | DType::BF16);
        let fits = width.is_multiple_of(ELEMENTS_PER_READ) && (1..=MAX_WIDTH).contains(&width);
        let not_empty = batch * heads * queries * keys > 0;
        if !(on_cuda(like) && half && fits && not_empty) {
            return None;
        }
        let padded = width.next_multiple_of(16);
        let compiled = |source, target| nvrtc::image(source, like.dtype, padded, target);
        let sm90 =
            SM90_WIDTHS.contains(&padded).then(|| compiled(Source::AttentionSm90, SM90)).flatten();
        let (image, tiling) = match sm90 {
            Some(image) => (image, Tiling::wgmma(padded)),
            None => (compiled(Source::Attention, TARGET)?, Tiling::mma(width)),
        };
        Some(Self { image, tiling, batch, heads, queries, keys, width, scale })
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
        let [q, k, v] = qkv.map(Heads::readable);
        let out = self.empty_rows(&q.tensor, self.queries);
        self.forward_into([&q, &k, &v], &Heads::of_rows(&out), logsumexp);
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
        let [q, k, v] = qkv.map(Heads::readable);
        let [grad, value] = [grad, value].map(Heads::readable);
        let gradients = [self.queries, self.keys, self.keys].map(|n| self.empty_rows(&q.tensor, n));
        let [dq, dk, dv] = gradients.each_ref().map(Heads::of_rows);
        self.gradient_into([&q, &k, &v], [&grad, &value], logsumexp, [&dq, &dk, &dv]);
        gradients.map(|x| Cube::float_swap_dims(x, 1, 2))
    }

    /// Writes the attention to `out`, and the log-sum-exp of each query if there is room for it.
    fn forward_into(&self, qkv: [&Heads; 3], out: &Heads, logsumexp: Option<&CubeTensor>) {
        let ([q, k, v], Blocks { threads, rows, shared }) = (qkv, self.tiling.forward);
        let grid = [self.queries.div_ceil(rows), self.batch * self.heads];
        let (image, sizes) = (self.image, self.arguments(&[q, k, v, out]));
        let (at, saves) = (offsets([q, k, v, out]), logsumexp.is_some());
        let tensors =
            [&q.tensor, &k.tensor, &v.tensor, &out.tensor, logsumexp.unwrap_or(&out.tensor)];
        stream::submit(tensors, move |context, [q, k, v, out, logsumexp]| {
            let [q, k, v, out] = at([q, k, v, out]);
            // A null pointer tells the kernel not to write the log-sum-exp.
            let logsumexp = if saves { logsumexp } else { 0 };
            let arguments = [q, k, v, out, logsumexp].into_iter().chain(sizes).collect();
            let name = entry!("attention_forward");
            context.launcher.launch_in(image, name, grid, threads, shared, arguments)
        });
    }

    /// Writes the gradients by q, k and v, from the gradient of the value, the value and its log-sum-exp.
    fn gradient_into(
        &self,
        [q, k, v]: [&Heads; 3],
        [grad, value]: [&Heads; 2],
        logsumexp: &CubeTensor,
        [dq, dk, dv]: [&Heads; 3],
    ) {
        let (image, Tiling { queries, keys, .. }) = (self.image, self.tiling);
        let delta = self.empty_logsumexp(&q.tensor);
        let heads = self.batch * self.heads;
        let query_grid = [self.queries.div_ceil(queries.rows), heads];
        let key_blocks = self.keys.div_ceil(keys.rows);
        let (parts, chunk) = self.parts_of_queries(key_blocks * heads);
        let sums = (parts > 1)
            .then(|| empty(&q.tensor, vec![parts, heads, 2, self.keys, self.width], DType::F32));
        let key_grid = [key_blocks * parts, heads];
        let add_grid = [(self.keys * self.width / 2).div_ceil(256), heads];
        let add = self.arguments_of_sums(parts, [dk, dv]);
        let of_queries = self.arguments(&[q, k, v, grad, value, dq]);
        let sizes = [key_blocks as u64, chunk as u64].into_iter();
        let of_keys: Vec<u64> = sizes.chain(self.arguments(&[q, k, v, grad, dk, dv])).collect();
        let all = [q, k, v, grad, value, dq, dk, dv];
        let at = offsets(all);
        let [q, k, v, grad, value, dq, dk, dv] = all.map(|heads| &heads.tensor);
        stream::submit(
            [q, k, v, grad, value, dq, dk, dv, logsumexp, &delta, sums.as_ref().unwrap_or(&delta)],
            move |context, [q, k, v, grad, value, dq, dk, dv, logsumexp, delta, sums]| {
                let launcher = &mut context.launcher;
                let [q, k, v, grad, value, dq, dk, dv] = at([q, k, v, grad, value, dq, dk, dv]);
                let tensors = [q, k, v, grad, value, logsumexp, delta, dq];
                let arguments = tensors.into_iter().chain(of_queries).collect();
                let name = entry!("attention_gradient_queries");
                let Blocks { threads, shared, .. } = queries;
                launcher.launch_in(image, name, query_grid, threads, shared, arguments)?;
                // A null pointer tells the kernel to write the gradients themselves.
                let of_parts = if parts > 1 { sums } else { 0 };
                let tensors = [q, k, v, grad, logsumexp, delta, dk, dv, of_parts];
                let arguments = tensors.into_iter().chain(of_keys).collect();
                let name = entry!("attention_gradient_keys");
                let Blocks { threads, shared, .. } = keys;
                launcher.launch_in(image, name, key_grid, threads, shared, arguments)?;
                if parts == 1 {
                    return Ok(());
                }
                let arguments = [sums, dk, dv].into_iter().chain(add).collect();
                launcher.launch_in(
                    image,
                    entry!("attention_add_parts"),
                    add_grid,
                    256,
                    0,
                    arguments,
                )
            },
        );
    }

    /// In how many parts blocks share the queries of a block of keys, and the queries of a part.
    ///
    /// A few keys, as those of a text, have too few blocks for the multiprocessors.
    fn parts_of_queries(&self, blocks: usize) -> (usize, usize) {
        let wanted = ENOUGH_BLOCKS.div_ceil(blocks).min(self.queries / QUERIES_OF_A_PART).max(1);
        let chunk = self.queries.div_ceil(wanted).next_multiple_of(ROWS_OF_A_TILE);
        (self.queries.div_ceil(chunk), chunk)
    }

    /// The sizes and strides for the sum over parts.
    fn arguments_of_sums(&self, parts: usize, gradients: [&Heads; 2]) -> Vec<u64> {
        let sizes = [parts, self.keys, self.width, self.heads].map(|size| size as u64);
        sizes.into_iter().chain(gradients.iter().flat_map(|heads| heads.strides())).collect()
    }

    /// An uninitialized `[b, rows, heads, d]`, the order in which the next layer reads it.
    fn empty_rows(&self, like: &CubeTensor, rows: usize) -> CubeTensor {
        empty(like, vec![self.batch, rows, self.heads, self.width], like.dtype)
    }

    /// The sizes, strides and scale, as all kernels take them.
    fn arguments(&self, heads: &[&Heads]) -> Vec<u64> {
        let sizes = [self.queries, self.keys, self.width, self.heads].map(|size| size as u64);
        let strides = heads.iter().flat_map(|heads| heads.strides());
        let scale = u64::from((self.scale as f32).to_bits());
        sizes.into_iter().chain(strides).chain([scale]).collect()
    }
}
