//! Kronecker products of up to four factors on groups of rows in shared memory (`kronecker.cu`).

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::cuda::nvrtc::{self, Image, Target};
use crate::cuda::sources::Source;
use crate::cuda::stream;
use crate::cuda::support::{empty, empty_like, on_cuda};

/// The threads of a block.
const THREADS: usize = 128;
/// The side of a tensor core's matrix, which is the largest size of a factor.
const SIDE: usize = 16;
/// The shared memory in bytes that a block may have by default.
const SHARED: usize = 48 << 10;
/// The largest number of rows of a group.
const MAX_GROUP: usize = 8;
/// The blocks that sum the gradients of the factors: four for each multiprocessor of a large card.
const GRADIENT_BLOCKS: usize = 528;
/// `mma.sync` on TF32.
const TARGET: Target = Target::AtLeast((8, 0));

/// The kernels for factors of given sizes.
#[derive(Clone, Copy)]
pub(crate) struct KroneckerGroups {
    image: Image,
    /// The sizes of the factors, one in each byte.
    sizes: u64,
    width: usize,
    count: usize,
    last: usize,
    /// The number of entries of all factors.
    entries: usize,
    transposed: bool,
}

impl KroneckerGroups {
    /// The kernels for square factors, stored transposed or not. `None` if they do not take them.
    pub(super) fn new(
        x: &CubeTensor,
        a: &[CubeTensor],
        sizes: &[usize],
        transposed: bool,
    ) -> Option<Self> {
        let few = (1..=4).contains(&sizes.len());
        let small = sizes.iter().all(|n| (1..=SIDE).contains(n));
        if !(few && small && on_cuda(x) && a.iter().all(|a| a.dtype == DType::F32)) {
            return None;
        }
        let kernel = Self {
            image: nvrtc::image(Source::Kronecker, x.dtype, 0, TARGET)?,
            sizes: sizes.iter().rev().fold(0, |all, &n| all << 8 | n as u64),
            width: sizes.iter().product(),
            count: sizes.len(),
            last: *sizes.last()?,
            entries: sizes.iter().map(|n| n * n).sum(),
            transposed,
        };
        (kernel.shared(kernel.count + 1, 1) <= SHARED).then_some(kernel)
    }

    /// The bytes of shared memory for the factors and `buffers` buffers of `group` rows.
    fn shared(&self, buffers: usize, group: usize) -> usize {
        // The kernel pads the last axis to an odd length.
        let elements = group * self.width / self.last * (self.last | 1);
        // The partial gradients of the warps take the place of the rows.
        let rows = (buffers * elements).max(THREADS / 32 * SIDE * SIDE);
        4 * (self.count * SIDE * SIDE + rows)
    }

    /// The largest group of rows that fits with `buffers` buffers, and its bytes of shared memory.
    fn group(&self, buffers: usize) -> (usize, usize) {
        let fits = |group: &usize| self.shared(buffers, *group) <= SHARED;
        let group = (1..=MAX_GROUP).rev().find(fits).unwrap_or(1);
        (group, self.shared(buffers, group))
    }

    fn rows(&self, x: &CubeTensor) -> usize {
        x.shape().num_elements() / self.width
    }

    /// The sizes, as both kernels take them.
    fn arguments(&self, rows: usize, group: usize) -> [u64; 5] {
        [rows as u64, self.width as u64, self.sizes, self.transposed.into(), group as u64]
    }

    /// Multiplies the rows `x` with the factors `a`, one behind the other.
    pub(super) fn forward(self, x: CubeTensor, a: CubeTensor) -> CubeTensor {
        let [x, a] = [x, a].map(into_contiguous);
        let (y, rows) = (empty_like(&x), self.rows(&x));
        let (group, shared) = self.group(2);
        stream::submit([&x, &a, &y], move |context, [x, a, y]| {
            let arguments = [x, a, y].into_iter().chain(self.arguments(rows, group)).collect();
            let (name, grid) = (entry!("kronecker"), [rows.div_ceil(group), 1]);
            context.launcher.launch_in(self.image, name, grid, THREADS, shared, arguments)
        });
        y
    }

    /// The gradients by `x` if `with_dx` and by the factors.
    pub(super) fn gradient(
        self,
        x: CubeTensor,
        a: CubeTensor,
        dy: CubeTensor,
        with_dx: bool,
    ) -> (Option<CubeTensor>, CubeTensor) {
        let [x, a, dy] = [x, a, dy].map(into_contiguous);
        let rows = self.rows(&x);
        let (group, shared) = self.group(self.count + 1);
        let blocks = rows.div_ceil(group).min(GRADIENT_BLOCKS);
        let partial = empty(&x, vec![blocks, self.entries], DType::F32);
        let da = empty(&x, vec![self.entries], DType::F32);
        let dx = with_dx.then(|| empty_like(&x));
        let dx_or_x = dx.as_ref().unwrap_or(&x);
        stream::submit(
            [&x, &a, &dy, dx_or_x, &partial, &da],
            move |context, [x, a, dy, dx, partial, da]| {
                let launcher = &mut context.launcher;
                // A null pointer tells the kernel not to write the gradient by x.
                let dx = if with_dx { dx } else { 0 };
                let tensors = [x, a, dy, dx, partial];
                let arguments = tensors.into_iter().chain(self.arguments(rows, group)).collect();
                let (name, grid) = (entry!("kronecker_gradient"), [blocks, 1]);
                launcher.launch_in(self.image, name, grid, THREADS, shared, arguments)?;
                let arguments = vec![partial, da, self.entries as u64, blocks as u64];
                let (name, grid) = (entry!("kronecker_gradient_sums"), [self.entries, 1]);
                launcher.launch_in(self.image, name, grid, 32, 0, arguments)
            },
        );
        (dx, da)
    }
}
