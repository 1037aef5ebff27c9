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

/// The factors' sizes as the kernels take them.
#[derive(Clone, Copy)]
pub(crate) struct Planes {
    image: Image,
    sizes: [usize; 3],
    flipped: bool,
}

impl Planes {
    /// Of square factors, which lie transposed if `flipped`; `None` where the kernels do not take them.
    pub(super) fn new(
        x: &CubeTensor,
        a: &[CubeTensor],
        sizes: &[usize],
        flipped: bool,
    ) -> Option<Self> {
        let [n1, n2, n3] = *sizes else { return None };
        let fits = n1 <= FIRST && n2 <= OTHERS && n3 <= OTHERS && n3.is_multiple_of(2);
        let half = matches!(x.dtype, DType::BF16 | DType::F16);
        let single = a.len() == 3 && a.iter().all(|a| a.dtype == DType::F32);
        // Rows are read by pairs.
        let begins = x.handle.offset_start.unwrap_or(0).is_multiple_of(4);
        if !(fits && half && single && begins && on_cuda(x)) || n1 * n2 * n3 == 0 {
            return None;
        }
        Some(Self {
            image: images::image(SOURCE, x.dtype, 0, TARGET)?,
            sizes: [n1, n2, n3],
            flipped,
        })
    }

    /// How the rows of `x` are turned, as the kernels take it.
    fn arguments(&self, x: &CubeTensor) -> [u64; 3] {
        let rows = x.shape().num_elements() / self.sizes.iter().product::<usize>();
        let sizes = self.sizes.iter().rev().fold(0, |all, &n| all << 8 | n as u64);
        [rows as u64, sizes, self.flipped.into()]
    }

    /// The rows turned.
    pub(super) fn forward(self, x: CubeTensor, a: Vec<CubeTensor>) -> CubeTensor {
        let x = into_contiguous(x);
        let a: Vec<_> = a.into_iter().map(into_contiguous).collect();
        let (y, sizes) = (like(&x), self.arguments(&x));
        let blocks = (sizes[0] as usize).clamp(1, BLOCKS);
        session::submit([&x, &a[0], &a[1], &a[2], &y], move |session, tensors| {
            let arguments = tensors.into_iter().chain(sizes).collect();
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
        let sizes = self.arguments(&x);
        let blocks = (sizes[0] as usize).clamp(1, GRADIENT_BLOCKS);
        let entries = self.sizes.map(|n| n * n);
        let all = entries.iter().sum();
        let partial = empty(&x, vec![all, blocks], DType::F32);
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
                let arguments = tensors.into_iter().chain(sizes).collect();
                let name = "turn_planes_gradient";
                session.launch_of(self.image, name, [blocks, 1], THREADS, 0, arguments)?;
                let (second, third) = (entries[0] as u64, (entries[0] + entries[1]) as u64);
                let arguments = vec![partial, da1, da2, da3, second, third, blocks as u64];
                session.launch_of(self.image, "turn_planes_sums", [all, 1], 32, 0, arguments)
            },
        );
        (dx, da.into(), y)
    }
}
