//! Concatenation and split of the channels of maps, channels last (`elementwise.cu`).

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw};
use burn_cubecl::tensor::CubeTensor;

use super::sizes::blocks;
use crate::cuda::stream;
use crate::cuda::support::empty;

/// Concatenates two maps `[b, c, h, w]` along the channels. The result is stored channels last.
pub(crate) fn concat_channels(a: CubeTensor, b: CubeTensor) -> CubeTensor {
    let [a, b] = [a, b].map(|map| into_contiguous(permute_nchw_to_nhwc(map)));
    let ([batch, height, width, first], [_, _, _, second]) =
        (a.shape().dims::<4>(), b.shape().dims::<4>());
    let y = empty(&a, vec![batch, height, width, first + second], a.dtype);
    let (rows, name) = (batch * height * width, kernel!("concat_channels", a.dtype));
    stream::submit([&a, &b, &y], move |context, [a, b, y]| {
        let arguments = vec![a, b, y, first as u64, second as u64, rows as u64];
        let grid = [blocks(rows * (first + second)), 1];
        context.launcher.launch(name, grid, 256, 0, arguments)
    });
    permute_nhwc_to_nchw(y)
}

/// Splits a map `[b, c, h, w]` into its first `channels` channels and the others.
pub(crate) fn split_channels(y: CubeTensor, channels: usize) -> (CubeTensor, CubeTensor) {
    let y = into_contiguous(permute_nchw_to_nhwc(y));
    let [batch, height, width, all] = y.shape().dims::<4>();
    let map = |channels| empty(&y, vec![batch, height, width, channels], y.dtype);
    let (a, b) = (map(channels), map(all - channels));
    let (rows, name) = (batch * height * width, kernel!("split_channels", y.dtype));
    stream::submit([&y, &a, &b], move |context, [y, a, b]| {
        let (first, second) = (channels as u64, (all - channels) as u64);
        let arguments = vec![y, a, b, first, second, rows as u64];
        context.launcher.launch(name, [blocks(rows * all), 1], 256, 0, arguments)
    });
    (permute_nhwc_to_nchw(a), permute_nhwc_to_nchw(b))
}
