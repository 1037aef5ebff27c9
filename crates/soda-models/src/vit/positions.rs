//! Position embeddings for pictures of another size than that of training.

use burn::tensor::{Device, Tensor, TensorData};
use soda_kernels::matmul;

/// The positions of a grid of `height` x `width` patches, `[1, 1 + height width, d]`, from those of
/// the square grid of training, `[1, 1 + s s, d]`: the class token's stays, the others are
/// interpolated, `P' = R_h P R_wᵀ` in each of the `d` channels.
///
/// As `interpolate_pos_encoding` of transformers' `Dinov2Model`.
pub(super) fn resample(positions: Tensor<3>, [height, width]: [usize; 2]) -> Tensor<3> {
    let [_, n, d] = positions.dims();
    let side = (n - 1).isqrt();
    if [height, width] == [side; 2] {
        return positions;
    }
    let (device, dtype) = (positions.device(), positions.dtype());
    let class = positions.clone().narrow(1, 0, 1);
    let grid: Tensor<2> = positions.narrow(1, 1, side * side).reshape([side, side * d]);
    let rows = matmul(bicubic(side, height, &device).cast(dtype), grid);
    let columns = bicubic(side, width, &device).cast(dtype).unsqueeze().repeat_dim(0, height);
    let grid: Tensor<3> = matmul(columns, rows.reshape([height, side, d]));
    Tensor::cat(vec![class, grid.reshape([1, height * width, d])], 1)
}

/// PyTorch's bicubic interpolation of `from` samples at `to` places, `[to, from]`: Keys' kernel
/// (IEEE Trans. ASSP 29(6), 1981), pixel centres aligned, the border repeated.
fn bicubic(from: usize, to: usize, device: &Device) -> Tensor<2> {
    let mut weights = vec![0.0; to * from];
    for (i, row) in weights.chunks_exact_mut(from).enumerate() {
        let x = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let first = x.floor() as isize - 1;
        for j in first..first + 4 {
            row[j.clamp(0, from as isize - 1) as usize] += keys(x - j as f64) as f32;
        }
    }
    Tensor::from_data(TensorData::new(weights, [to, from]), device)
}

/// Keys' cubic kernel with PyTorch's `a`.
fn keys(x: f64) -> f64 {
    const A: f64 = -0.75;
    let x = x.abs();
    match x {
        ..=1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        ..=2.0 => ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A,
        _ => 0.0,
    }
}
