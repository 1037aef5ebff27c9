//! Kronecker products of three factors on rows of half precision, one row in a block (`kronecker3_half.cu`).

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
/// The blocks of the forward pass and of the gradient: as many as a large card runs at once.
const BLOCKS: usize = 792;
const GRADIENT_BLOCKS: usize = 528;
/// The largest size of the first factor and of the other factors.
const MAX_FIRST: usize = 8;
const MAX_OTHERS: usize = 16;
/// `mma.sync` on bfloat16.
const TARGET: Target = Target::AtLeast((8, 0));
/// The threads of a block that sums partial gradients, and the entries of that block.
const SUM_THREADS: usize = 1024;
const SUM_ENTRIES: usize = 32;

/// The kernels for three sizes. They are compiled for each triple of sizes, of which a network has a few.
#[derive(Clone, Copy)]
pub(crate) struct Kronecker3Half {
    image: Image,
    sizes: [usize; 3],
    transposed: bool,
}

impl Kronecker3Half {
    /// The kernels for square factors, stored transposed or not, on these rows. `None` if they do not take
    /// them.
    pub(super) fn new(
        rows: &[&CubeTensor],
        a: &[CubeTensor],
        sizes: &[usize],
        transposed: bool,
    ) -> Option<Self> {
        let [n1, n2, n3] = *sizes else { return None };
        let fits = n1 <= MAX_FIRST && n2 <= MAX_OTHERS && n3 <= MAX_OTHERS && n3.is_multiple_of(2);
        let dtype = rows.first()?.dtype;
        let half = matches!(dtype, DType::BF16 | DType::F16);
        let f32_factors = a.len() == 3 && a.iter().all(|a| a.dtype == DType::F32);
        // The kernels read four elements at once.
        let readable = |x: &&CubeTensor| {
            let aligned = x.handle.offset_start.unwrap_or(0).is_multiple_of(8);
            aligned && x.dtype == dtype && on_cuda(x)
        };
        if !(fits && half && f32_factors && rows.iter().all(readable)) || n1 * n2 * n3 == 0 {
            return None;
        }
        let packed = n1 | n2 << 8 | n3 << 16;
        let image = nvrtc::image(Source::Kronecker3Half, dtype, packed, TARGET)?;
        Some(Self { image, sizes: [n1, n2, n3], transposed })
    }

    /// The number of rows of `x`, and whether the factors are transposed, as the kernels take them.
    fn arguments(&self, x: &CubeTensor) -> [u64; 2] {
        let rows = x.shape().num_elements() / self.sizes.iter().product::<usize>();
        [rows as u64, self.transposed.into()]
    }

    /// Multiplies the rows `x` with the factors.
    pub(super) fn forward(self, x: CubeTensor, a: Vec<CubeTensor>) -> CubeTensor {
        let x = into_contiguous(x);
        let a: Vec<_> = a.into_iter().map(into_contiguous).collect();
        let (y, rows) = (empty_like(&x), self.arguments(&x));
        let blocks = (rows[0] as usize).clamp(1, BLOCKS);
        stream::submit([&x, &a[0], &a[1], &a[2], &y], move |context, tensors| {
            let arguments = tensors.into_iter().chain(rows).collect();
            let (name, grid) = (entry!("kronecker3_half"), [blocks, 1]);
            context.launcher.launch_in(self.image, name, grid, THREADS, 0, arguments)
        });
        y
    }

    /// The gradients by `x` and by the factors, and the product if `with_product`.
    pub(super) fn gradient(
        self,
        x: CubeTensor,
        a: Vec<CubeTensor>,
        dy: CubeTensor,
        with_product: bool,
    ) -> (CubeTensor, Vec<CubeTensor>, Option<CubeTensor>) {
        let [x, dy] = [x, dy].map(into_contiguous);
        let a: Vec<_> = a.into_iter().map(into_contiguous).collect();
        let rows = self.arguments(&x);
        let blocks = (rows[0] as usize).clamp(1, GRADIENT_BLOCKS);
        let entries = self.sizes.map(|n| n * n);
        let all: usize = entries.iter().sum();
        let partial = empty(&x, vec![blocks, all], DType::F32);
        let dx = empty_like(&x);
        let da = entries.map(|entries| empty(&x, vec![entries], DType::F32));
        let y = with_product.then(|| empty_like(&x));
        let y_or_dx = y.as_ref().unwrap_or(&dx);
        stream::submit(
            [&x, &a[0], &a[1], &a[2], &dy, &dx, y_or_dx, &partial, &da[0], &da[1], &da[2]],
            move |context, [x, a1, a2, a3, dy, dx, y, partial, da1, da2, da3]| {
                let launcher = &mut context.launcher;
                // A null pointer tells the kernel not to write the product.
                let y = if with_product { y } else { 0 };
                let tensors = [x, a1, a2, a3, dy, dx, y, partial];
                let arguments = tensors.into_iter().chain(rows).collect();
                let (name, grid) = (entry!("kronecker3_half_gradient"), [blocks, 1]);
                launcher.launch_in(self.image, name, grid, THREADS, 0, arguments)?;
                let arguments = vec![partial, da1, da2, da3, blocks as u64];
                let name = entry!("kronecker3_half_gradient_sums");
                let grid = [all.div_ceil(SUM_ENTRIES), 1];
                launcher.launch_in(self.image, name, grid, SUM_THREADS, 0, arguments)
            },
        );
        (dx, da.into(), y)
    }
}
