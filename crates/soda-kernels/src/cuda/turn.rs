//! Kronecker products on rows: all factors in one kernel, each way; of half precision by [`Planes`], where those take them.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::copies::{cat, split};
use super::images::{self, Image, Target};
use super::launch::{empty, like};
use super::planes::Planes;
use super::{on_cuda, session};

/// Threads of a block.
const THREADS: usize = 128;
/// Rows and columns of a tensor core's factor, the most that one may have.
const SIDE: usize = 16;
/// What a block may have of shared memory without asking.
const SHARED: usize = 48 << 10;
/// Rows that a block has at a time, where they fit.
const GROUP: usize = 8;
/// Blocks that add up the factors' gradients: four for each multiprocessor of a large card.
const BLOCKS: usize = 528;
const SOURCE: &str = concat!(include_str!("numbers.cu"), include_str!("turn.cu"));
/// `mma.sync` on tf32.
const TARGET: Target = Target::From((8, 0));

/// Factors that kernels take.
#[derive(Clone, Copy)]
pub(crate) enum Turn {
    /// Three, of which each warp keeps a row in registers.
    Planes(Planes),
    /// Up to four, through which groups of rows go in shared memory.
    Groups(Groups),
}

impl Turn {
    /// Of square factors, which lie transposed if `flipped`, on these rows; `None` where no kernel takes them.
    pub(crate) fn new(
        rows: &[&CubeTensor],
        a: &[CubeTensor],
        sizes: &[usize],
        flipped: bool,
    ) -> Option<Self> {
        let planes = Planes::new(rows, a, sizes, flipped).map(Self::Planes);
        planes.or_else(|| Groups::new(rows.first()?, a, sizes, flipped).map(Self::Groups))
    }

    /// `x (A1 ⊗ … ⊗ Am)`.
    pub(crate) fn forward(self, x: CubeTensor, a: Vec<CubeTensor>) -> CubeTensor {
        match self {
            Self::Planes(planes) => planes.forward(x, a),
            Self::Groups(groups) => groups.forward(x, cat(a)),
        }
    }

    /// The gradients by `x`, if wanted, and by the factors; and [`Turn::forward`] if `again`.
    pub(crate) fn gradient(
        self,
        x: CubeTensor,
        a: Vec<CubeTensor>,
        dy: CubeTensor,
        by_x: bool,
        again: bool,
    ) -> (Option<CubeTensor>, Vec<CubeTensor>, Option<CubeTensor>) {
        match self {
            Self::Planes(planes) => {
                let (dx, da, y) = planes.gradient(x, a, dy, again);
                (by_x.then_some(dx), da, y)
            }
            Self::Groups(groups) => {
                let lengths: Vec<_> = a.iter().map(|a| a.shape().num_elements()).collect();
                let a = cat(a);
                let y = again.then(|| groups.forward(x.clone(), a.clone()));
                let (dx, da) = groups.gradient(x, a, dy, by_x);
                (dx, split(da, &lengths), y)
            }
        }
    }
}

/// The factors' sizes as the kernels of `turn.cu` take them.
#[derive(Clone, Copy)]
pub(crate) struct Groups {
    image: Image,
    sizes: u64,
    width: usize,
    count: usize,
    last: usize,
    entries: usize,
    flipped: bool,
}

impl Groups {
    /// Of square factors, which lie transposed if `flipped`; `None` where the kernels do not take them.
    fn new(x: &CubeTensor, a: &[CubeTensor], sizes: &[usize], flipped: bool) -> Option<Self> {
        let few = (1..=4).contains(&sizes.len());
        let small = sizes.iter().all(|n| (1..=SIDE).contains(n));
        if !(few && small && on_cuda(x) && a.iter().all(|a| a.dtype == DType::F32)) {
            return None;
        }
        let turn = Self {
            image: images::image(SOURCE, x.dtype, 0, TARGET)?,
            sizes: sizes.iter().rev().fold(0, |all, &n| all << 8 | n as u64),
            width: sizes.iter().product(),
            count: sizes.len(),
            last: *sizes.last()?,
            entries: sizes.iter().map(|n| n * n).sum(),
            flipped,
        };
        (turn.shared(turn.count + 1, 1) <= SHARED).then_some(turn)
    }

    /// Bytes for the factors and `buffers` of `group` rows.
    fn shared(&self, buffers: usize, group: usize) -> usize {
        // The last axis is made odd there.
        let numbers = group * self.width / self.last * (self.last | 1);
        // The gradients of the warps go where the rows were.
        let rows = (buffers * numbers).max(THREADS / 32 * SIDE * SIDE);
        4 * (self.count * SIDE * SIDE + rows)
    }

    /// Rows at a time in `buffers`, and the bytes for that.
    fn group(&self, buffers: usize) -> (usize, usize) {
        let fits = |group: &usize| self.shared(buffers, *group) <= SHARED;
        let group = (1..=GROUP).rev().find(fits).unwrap_or(1);
        (group, self.shared(buffers, group))
    }

    fn rows(&self, x: &CubeTensor) -> usize {
        x.shape().num_elements() / self.width
    }

    fn forward(self, x: CubeTensor, a: CubeTensor) -> CubeTensor {
        let [x, a] = [x, a].map(into_contiguous);
        let (y, rows) = (like(&x), self.rows(&x));
        let (group, shared) = self.group(2);
        session::submit([&x, &a, &y], move |session, [x, a, y]| {
            let arguments = [x, a, y].into_iter().chain(self.sizes(rows, group)).collect();
            let blocks = rows.div_ceil(group);
            session.launch_of(self.image, "turn", [blocks, 1], THREADS, shared, arguments)
        });
        y
    }

    /// Sizes as both kernels take them.
    fn sizes(&self, rows: usize, group: usize) -> [u64; 5] {
        [rows as u64, self.width as u64, self.sizes, self.flipped.into(), group as u64]
    }

    /// The gradients by `x`, if wanted, and by the factors.
    fn gradient(
        self,
        x: CubeTensor,
        a: CubeTensor,
        dy: CubeTensor,
        by_x: bool,
    ) -> (Option<CubeTensor>, CubeTensor) {
        let [x, a, dy] = [x, a, dy].map(into_contiguous);
        let rows = self.rows(&x);
        let (group, shared) = self.group(self.count + 1);
        let blocks = rows.div_ceil(group).min(BLOCKS);
        let partial = empty(&x, vec![blocks, self.entries], DType::F32);
        let da = empty(&x, vec![self.entries], DType::F32);
        // Where nothing is to be written, its address is not looked at.
        let dx = by_x.then(|| like(&x));
        let name = "turn_gradient";
        let to = dx.as_ref().unwrap_or(&x);
        session::submit(
            [&x, &a, &dy, to, &partial, &da],
            move |session, [x, a, dy, dx, partial, da]| {
                let dx = if by_x { dx } else { 0 };
                let tensors = [x, a, dy, dx, partial];
                let arguments = tensors.into_iter().chain(self.sizes(rows, group)).collect();
                session.launch_of(self.image, name, [blocks, 1], THREADS, shared, arguments)?;
                let arguments = vec![partial, da, self.entries as u64, blocks as u64];
                session.launch_of(self.image, "turn_sums", [self.entries, 1], 32, 0, arguments)
            },
        );
        (dx, da)
    }
}
