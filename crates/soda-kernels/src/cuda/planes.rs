//! Kronecker products of three factors on rows of half precision: a block a row, each way.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::images::{self, Image, Target};
use super::launch::{empty, like};
use super::{on_cuda, session};

/// Threads of a block.
const THREADS: usize = 128;
/// Blocks of the forward pass and of the gradient: as many as fit a large card at once.
const BLOCKS: usize = 792;
const GRADIENT_BLOCKS: usize = 528;
/// Rows of the first factor and of the others, at most.
const FIRST: usize = 8;
const OTHERS: usize = 16;
const SOURCE: &str = concat!(include_str!("numbers.cu"), include_str!("planes.cu"));
/// `mma.sync` on bfloat16.
const TARGET: Target = Target::From((8, 0));

/// Threads of a block that adds up parts, and entries that it has.
const SUMMING: usize = 1024;
const SUMMED: usize = 32;

/// Factors that the kernels take; they are compiled for each three sizes, of which a network has a few.
#[derive(Clone, Copy)]
pub(crate) struct Planes {
    image: Image,
    sizes: [usize; 3],
    flipped: bool,
}

impl Planes {
    /// Of square factors, which lie transposed if `flipped`, on these rows; `None` where the kernels do not take them.
    pub(super) fn new(
        rows: &[&CubeTensor],
        a: &[CubeTensor],
        sizes: &[usize],
        flipped: bool,
    ) -> Option<Self> {
        let [n1, n2, n3] = *sizes else { return None };
        let fits = n1 <= FIRST && n2 <= OTHERS && n3 <= OTHERS && n3.is_multiple_of(2);
        let dtype = rows.first()?.dtype;
        let half = matches!(dtype, DType::BF16 | DType::F16);
        let single = a.len() == 3 && a.iter().all(|a| a.dtype == DType::F32);
        // Rows are read by fours.
        let reads = |x: &&CubeTensor| {
            let begins = x.handle.offset_start.unwrap_or(0).is_multiple_of(8);
            begins && x.dtype == dtype && on_cuda(x)
        };
        if !(fits && half && single && rows.iter().all(reads)) || n1 * n2 * n3 == 0 {
            return None;
        }
        let image = images::image(SOURCE, dtype, n1 | n2 << 8 | n3 << 16, TARGET)?;
        Some(Self { image, sizes: [n1, n2, n3], flipped })
    }

    /// How many rows `x` has, and how they are turned, as the kernels take it.
    fn arguments(&self, x: &CubeTensor) -> [u64; 2] {
        let rows = x.shape().num_elements() / self.sizes.iter().product::<usize>();
        [rows as u64, self.flipped.into()]
    }

    /// The rows turned.
    pub(super) fn forward(self, x: CubeTensor, a: Vec<CubeTensor>) -> CubeTensor {
        let x = into_contiguous(x);
        let a: Vec<_> = a.into_iter().map(into_contiguous).collect();
        let (y, rows) = (like(&x), self.arguments(&x));
        let blocks = (rows[0] as usize).clamp(1, BLOCKS);
        session::submit([&x, &a[0], &a[1], &a[2], &y], move |session, tensors| {
            let arguments = tensors.into_iter().chain(rows).collect();
            session.launch_of(self.image, "turn_planes", [blocks, 1], THREADS, 0, arguments)
        });
        y
    }

    /// The gradients by `x` and by the factors, and the rows turned if `again`.
    pub(super) fn gradient(
        self,
        x: CubeTensor,
        a: Vec<CubeTensor>,
        dy: CubeTensor,
        again: bool,
    ) -> (CubeTensor, Vec<CubeTensor>, Option<CubeTensor>) {
        let [x, dy] = [x, dy].map(into_contiguous);
        let a: Vec<_> = a.into_iter().map(into_contiguous).collect();
        let rows = self.arguments(&x);
        let blocks = (rows[0] as usize).clamp(1, GRADIENT_BLOCKS);
        let entries = self.sizes.map(|n| n * n);
        let all: usize = entries.iter().sum();
        let partial = empty(&x, vec![blocks, all], DType::F32);
        let dx = like(&x);
        let da = entries.map(|entries| empty(&x, vec![entries], DType::F32));
        let y = again.then(|| like(&x));
        let to = y.as_ref().unwrap_or(&dx);
        session::submit(
            [&x, &a[0], &a[1], &a[2], &dy, &dx, to, &partial, &da[0], &da[1], &da[2]],
            move |session, [x, a1, a2, a3, dy, dx, y, partial, da1, da2, da3]| {
                // Where it is not to be written, its address is not looked at.
                let y = if again { y } else { 0 };
                let tensors = [x, a1, a2, a3, dy, dx, y, partial];
                let arguments = tensors.into_iter().chain(rows).collect();
                let name = "turn_planes_gradient";
                session.launch_of(self.image, name, [blocks, 1], THREADS, 0, arguments)?;
                let arguments = vec![partial, da1, da2, da3, blocks as u64];
                let (name, grid) = ("turn_planes_sums", [all.div_ceil(SUMMED), 1]);
                session.launch_of(self.image, name, grid, SUMMING, 0, arguments)
            },
        );
        (dx, da.into(), y)
    }
}
