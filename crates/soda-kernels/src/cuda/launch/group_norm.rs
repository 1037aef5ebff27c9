//! Group norm with an optional SiLU, and its gradient (`group_norm.cu`).

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw};
use burn_cubecl::tensor::CubeTensor;

use super::sizes::{blocks, float_argument};
use crate::cuda::stream;
use crate::cuda::support::{empty, empty_like};

/// The threads of a block that sums groups, and the pixels of each thread.
const SUM_THREADS: usize = 512;
const PIXELS_PER_THREAD: usize = 4;

/// A group norm on `[b, c, h, w]`, followed by SiLU if `silu`.
pub(crate) struct GroupNorm {
    pub(crate) groups: usize,
    pub(crate) eps: f32,
    pub(crate) silu: bool,
}

impl GroupNorm {
    /// The value, and mean and inverse standard deviation of each group.
    pub(crate) fn forward(
        &self,
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let x = into_contiguous(permute_nchw_to_nhwc(x));
        let [gamma, beta] = [gamma, beta].map(into_contiguous);
        let sizes = Sizes::of(&x, self.groups);
        let [partial, stats] = sizes.empty_sums(&x);
        let y = empty_like(&x);
        let (sums, means) = (kernel!("group_sums", x.dtype), kernel!("group_stats", x.dtype));
        let (name, eps) = (kernel!("group_norm", x.dtype), float_argument(self.eps));
        let silu = self.silu.into();
        stream::submit(
            [&x, &gamma, &beta, &y, &partial, &stats],
            move |context, [x, gamma, beta, y, partial, stats]| {
                let (s, launcher) = (sizes, &mut context.launcher);
                let arguments = vec![x, partial, s.pixels, s.channels, s.groups, s.pixels_per_part];
                launcher.launch(sums, s.parts_grid(), SUM_THREADS, s.shared(), arguments)?;
                let arguments =
                    vec![x, partial, stats, s.pixels, s.channels, s.groups, s.parts, eps];
                launcher.launch(means, s.groups_grid(), 128, 0, arguments)?;
                let arguments =
                    vec![x, stats, gamma, beta, y, s.pixels, s.channels, s.groups, silu];
                launcher.launch(name, s.elements_grid(), 256, 0, arguments)
            },
        );
        (permute_nhwc_to_nchw(y), stats)
    }

    /// The gradient by `x`, with the statistics `stats` of [`GroupNorm::forward`].
    pub(crate) fn gradient(
        &self,
        x: CubeTensor,
        dy: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        stats: CubeTensor,
    ) -> CubeTensor {
        let [x, dy] = [x, dy].map(|map| into_contiguous(permute_nchw_to_nhwc(map)));
        let [gamma, beta] = [gamma, beta].map(into_contiguous);
        let sizes = Sizes::of(&x, self.groups);
        let [partial, means] = sizes.empty_sums(&x);
        let dx = empty_like(&x);
        let sums = kernel!("group_gradient_sums", x.dtype);
        let name = kernel!("group_gradient", x.dtype);
        let silu = self.silu.into();
        stream::submit(
            [&x, &dy, &gamma, &beta, &dx, &partial, &stats, &means],
            move |context, [x, dy, gamma, beta, dx, partial, stats, means]| {
                let (s, launcher) = (sizes, &mut context.launcher);
                let mut arguments = vec![x, dy, stats, gamma, beta, partial];
                arguments.extend([s.pixels, s.channels, s.groups, s.pixels_per_part, silu]);
                launcher.launch(sums, s.parts_grid(), SUM_THREADS, s.shared(), arguments)?;
                let arguments = vec![partial, means, s.pixels, s.channels, s.groups, s.parts];
                let name_means = entry!("group_means_f32");
                launcher.launch(name_means, s.groups_grid(), 128, 0, arguments)?;
                let mut arguments = vec![x, dy, stats, means, gamma, beta, dx];
                arguments.extend([s.pixels, s.channels, s.groups, silu]);
                launcher.launch(name, s.elements_grid(), 256, 0, arguments)
            },
        );
        permute_nhwc_to_nchw(dx)
    }
}

/// The sizes of a channels-last map, as the kernels take them.
#[derive(Clone, Copy)]
struct Sizes {
    batch: u64,
    pixels: u64,
    channels: u64,
    groups: u64,
    /// The pixels of a block that sums, and the number of these blocks for each sample.
    pixels_per_part: u64,
    parts: u64,
    /// The bytes of an element.
    width: usize,
}

impl Sizes {
    fn of(x: &CubeTensor, groups: usize) -> Self {
        let [batch, height, width, channels] = x.shape().dims::<4>().map(|size| size as u64);
        let pixels = height * width;
        let (width, groups) = (x.dtype.size(), groups as u64);
        // A thread reads 16 bytes at once.
        let lanes = (channels as usize * width).div_ceil(16);
        let pixels_per_part = (PIXELS_PER_THREAD * (SUM_THREADS / lanes).max(1)) as u64;
        let parts = pixels.div_ceil(pixels_per_part);
        Self { batch, pixels, channels, groups, pixels_per_part, parts, width }
    }

    /// Room for two sums of each group: for each part, and in total.
    fn empty_sums(&self, x: &CubeTensor) -> [CubeTensor; 2] {
        let pairs = (2 * self.batch * self.groups) as usize;
        [pairs * self.parts as usize, pairs].map(|size| empty(x, vec![size], DType::F32))
    }

    fn parts_grid(&self) -> [usize; 2] {
        [self.parts as usize, self.batch as usize]
    }

    fn groups_grid(&self) -> [usize; 2] {
        [self.groups as usize, self.batch as usize]
    }

    fn elements_grid(&self) -> [usize; 2] {
        [blocks((self.pixels * self.channels) as usize), self.batch as usize]
    }

    /// The shared memory of a block that sums: two floats for each channel of each pixel that it reads at
    /// once.
    fn shared(&self) -> usize {
        8 * (self.channels as usize).max(SUM_THREADS * 16 / self.width)
    }
}
