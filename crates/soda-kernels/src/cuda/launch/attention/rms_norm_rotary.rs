//! RMS norm of heads and their rotation (`rms_norm_rotary.cu`).

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::heads::{Heads, offsets};
use crate::cuda::launch::sizes::float_argument;
use crate::cuda::stream;
use crate::cuda::support::{empty_like, kernels_take};

/// The largest width of a head: two quads for each lane of a warp.
const MAX_WIDTH: usize = 256;
/// Strides and widths are multiples of this number, so that a lane reads four numbers at once.
const QUAD: usize = 4;
/// The warps of a block, and the heads of a token that a warp has.
const WARPS: usize = 8;
const HEADS_OF_WARP: usize = 2;

/// The constants of the norm and the rotation, and the sizes.
#[derive(Clone)]
pub(crate) struct NormRotary {
    gamma: CubeTensor,
    cos: CubeTensor,
    sin: CubeTensor,
    eps: f32,
    /// Samples, tokens, heads and channels of a head.
    sizes: [usize; 4],
}

impl NormRotary {
    /// For heads `[b, n, heads, d]` of these sizes in the dtype of `gamma` `[d]`, with tables
    /// `[b or 1, n, 1, d]`. `None` if no kernel takes them.
    pub(crate) fn new(
        sizes: [usize; 4],
        [gamma, cos, sin]: [CubeTensor; 3],
        eps: f64,
    ) -> Option<Self> {
        let (width, rows) = (sizes[3], sizes[0] * sizes[1] * sizes[2]);
        let fits = width.is_multiple_of(QUAD) && width <= MAX_WIDTH;
        let tables = cos.dtype == DType::F32 && sin.dtype == DType::F32;
        let counts = rows > 0 && u32::try_from(rows + WARPS).is_ok();
        if !(kernels_take(&gamma) && fits && tables && counts) {
            return None;
        }
        let [gamma, cos, sin] = [gamma, cos, sin].map(into_contiguous);
        Some(Self { gamma, cos, sin, eps: eps as f32, sizes })
    }

    /// The value for a tensor `[b, n, heads, d]`.
    pub(crate) fn forward(&self, x: CubeTensor) -> CubeTensor {
        let x = into_contiguous(x);
        let y = empty_like(&x);
        self.forward_into(&Heads::of_rows(&x), &Heads::of_rows(&y));
        y
    }

    /// The gradient by a tensor `[b, n, heads, d]`.
    pub(crate) fn gradient(&self, x: CubeTensor, dy: CubeTensor) -> CubeTensor {
        let [x, dy] = [x, dy].map(into_contiguous);
        let dx = empty_like(&x);
        self.gradient_into(&Heads::of_rows(&x), &Heads::of_rows(&dy), &Heads::of_rows(&dx));
        dx
    }

    /// Writes the value for the heads `x` to `y`.
    pub(super) fn forward_into(&self, x: &Heads, y: &Heads) {
        let (name, at) = (kernel!("rms_norm_rotary", self.gamma.dtype), offsets([x, y]));
        let (grid, sizes) = (self.grid(), self.arguments(&[x, y]));
        let tensors = [&x.tensor, &self.gamma, &self.cos, &self.sin, &y.tensor];
        stream::submit(tensors, move |context, [x, gamma, cos, sin, y]| {
            let [x, y] = at([x, y]);
            let arguments = [x, gamma, cos, sin, y].into_iter().chain(sizes).collect();
            context.launcher.launch(name, grid, 32 * WARPS, 0, arguments)
        });
    }

    /// Writes the gradient by the heads `x` to `dx`.
    pub(super) fn gradient_into(&self, x: &Heads, dy: &Heads, dx: &Heads) {
        let name = kernel!("rms_norm_rotary_gradient", self.gamma.dtype);
        let (at, grid) = (offsets([x, dy, dx]), self.grid());
        let sizes = self.arguments(&[x, dy, dx]);
        let tensors = [&x.tensor, &self.gamma, &self.cos, &self.sin, &dy.tensor, &dx.tensor];
        stream::submit(tensors, move |context, [x, gamma, cos, sin, dy, dx]| {
            let [x, dy, dx] = at([x, dy, dx]);
            let arguments = [x, gamma, cos, sin, dy, dx].into_iter().chain(sizes).collect();
            context.launcher.launch(name, grid, 32 * WARPS, 0, arguments)
        });
    }

    fn grid(&self) -> [usize; 2] {
        let [batch, tokens, heads, _] = self.sizes;
        [(batch * tokens * heads.div_ceil(HEADS_OF_WARP)).div_ceil(WARPS), 1]
    }

    /// The sizes, the strides of samples, tokens and heads, and epsilon, as the kernels take them.
    fn arguments(&self, heads: &[&Heads]) -> Vec<u64> {
        let table = if self.cos.shape()[0] == 1 { 0 } else { self.sizes[1] * self.sizes[3] };
        let sizes = self.sizes.into_iter().chain([table]).map(|size| size as u64);
        let strides = heads.iter().flat_map(|heads| {
            let [batch, head, row] = heads.strides();
            [batch, row, head]
        });
        sizes.chain(strides).chain([float_argument(self.eps)]).collect()
    }
}
