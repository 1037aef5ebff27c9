//! The gradient of nearest-neighbour upsampling, channels last (`elementwise.cu`).

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw};
use burn_cubecl::tensor::CubeTensor;

use super::sizes::blocks;
use crate::cuda::stream;
use crate::cuda::support::empty;

/// The gradient by the input `[b, c, h, w]` from `dy` `[b, c, height, width]`, stored channels last.
pub(crate) fn gradient(dy: CubeTensor) -> CubeTensor {
    let dy = into_contiguous(permute_nchw_to_nhwc(dy));
    let [batch, height, width, channels] = dy.shape().dims::<4>();
    let (h, w) = (height.div_ceil(2), width.div_ceil(2));
    let dx = empty(&dy, vec![batch, h, w, channels], dy.dtype);
    let name = kernel!("upsample_nearest_gradient", dy.dtype);
    let count = batch * h * w * channels;
    stream::submit([&dy, &dx], move |context, [dy, dx]| {
        let sizes = [height, width, channels, count].map(|size| size as u64);
        let arguments = [dy, dx].into_iter().chain(sizes).collect();
        context.launcher.launch(name, [blocks(count), 1], 256, 0, arguments)
    });
    permute_nhwc_to_nchw(dx)
}
