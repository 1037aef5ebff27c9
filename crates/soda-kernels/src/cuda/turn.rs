//! Kronecker products on rows: all factors in one kernel, each way.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::launch::{empty, kernel, like};
use super::{on_cuda, session};

/// Threads of a block; a factor has no more entries.
const THREADS: usize = 256;
/// What a block may have of shared memory without asking.
const SHARED: usize = 48 << 10;
/// Blocks that add up the factors' gradients: four for each multiprocessor of a large card.
const BLOCKS: usize = 528;

/// The factors' sizes as the kernels take them.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    sizes: u64,
    width: usize,
    count: usize,
    entries: usize,
    flipped: bool,
}

impl Turn {
    /// Of square factors, which lie transposed if `flipped`; `None` where the kernels do not take them.
    pub(crate) fn new(
        x: &CubeTensor,
        a: &CubeTensor,
        sizes: &[usize],
        flipped: bool,
    ) -> Option<Self> {
        let square = |n: &usize| n * n;
        let turn = Self {
            sizes: sizes.iter().rev().fold(0, |all, &n| all << 8 | n as u64),
            width: sizes.iter().product(),
            count: sizes.len(),
            entries: sizes.iter().map(square).sum(),
            flipped,
        };
        let few = (1..=4).contains(&sizes.len());
        let fits = sizes.iter().all(|n| (1..=THREADS).contains(&square(n)))
            && turn.shared(turn.count + 1) <= SHARED;
        let ours = on_cuda(x) && a.dtype == DType::F32 && session::kernels().is_some();
        (few && fits && ours).then_some(turn)
    }

    /// Bytes for the factors and some rows.
    fn shared(&self, rows: usize) -> usize {
        4 * (self.entries + (rows * self.width).max(THREADS))
    }

    fn rows(&self, x: &CubeTensor) -> usize {
        x.shape().num_elements() / self.width
    }

    /// `x (A1 ⊗ … ⊗ Am)`.
    pub(crate) fn forward(self, x: CubeTensor, a: CubeTensor) -> CubeTensor {
        let [x, a] = [x, a].map(into_contiguous);
        let (y, name, rows) = (like(&x), kernel!("turn", x.dtype), self.rows(&x));
        session::submit([&x, &a, &y], move |session, [x, a, y]| {
            let arguments = vec![x, a, y, self.width as u64, self.sizes, self.flipped.into()];
            session.launch(name, [rows, 1], THREADS, self.shared(2), arguments)
        });
        y
    }

    /// The gradients by `x`, if wanted, and by the factors.
    pub(crate) fn gradient(
        self,
        x: CubeTensor,
        a: CubeTensor,
        dy: CubeTensor,
        by_x: bool,
    ) -> (Option<CubeTensor>, CubeTensor) {
        let [x, a, dy] = [x, a, dy].map(into_contiguous);
        let rows = self.rows(&x);
        let blocks = rows.min(BLOCKS);
        let partial = empty(&x, vec![blocks, self.entries], DType::F32);
        let da = empty(&x, vec![self.entries], DType::F32);
        // Where nothing is to be written, its address is not looked at.
        let dx = by_x.then(|| like(&x));
        let name = kernel!("turn_gradient", x.dtype);
        let to = dx.as_ref().unwrap_or(&x);
        session::submit(
            [&x, &a, &dy, to, &partial, &da],
            move |session, [x, a, dy, dx, partial, da]| {
                let (entries, width) = (self.entries as u64, self.width as u64);
                let dx = if by_x { dx } else { 0 };
                let sizes = [rows as u64, width, self.sizes, self.flipped.into()];
                let arguments = [x, a, dy, dx, partial].into_iter().chain(sizes).collect();
                let shared = self.shared(self.count + 1);
                session.launch(name, [blocks, 1], THREADS, shared, arguments)?;
                let arguments = vec![partial, da, entries, blocks as u64];
                session.launch("turn_sums_f32", [self.entries, 1], 32, 0, arguments)
            },
        );
        (dx, da)
    }
}
