//! Interpolation of position embeddings to another image size than that of training.

use burn::tensor::{Device, Tensor, TensorData};
use soda_kernels::matmul;

/// One of PyTorch's two bicubic interpolations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    /// `antialias=False`: `a = -3/4`, with the border repeated.
    Plain,
    /// `antialias=True`: `a = -1/2`, widened if the grid shrinks, and cut off at the border.
    Smoothed,
}

/// Interpolates position embeddings to a grid of `height` x `width` patches, `P' = R_h P R_wᵀ` in each
/// channel.
///
/// `positions` is `[1, 1 + s s, d]` of a square grid, with the class token first. The class token's position
/// is kept. Returns `[1, 1 + height width, d]`.
///
/// Mirrors `interpolate_pos_encoding` of transformers' `Dinov2Model` and, with antialiasing, of
/// `Dinov2WithRegistersModel`.
pub(super) fn resample(
    positions: Tensor<3>,
    [height, width]: [usize; 2],
    kernel: Kernel,
) -> Tensor<3> {
    let [_, n, d] = positions.dims();
    let side = (n - 1).isqrt();
    if [height, width] == [side; 2] {
        return positions;
    }
    let (device, dtype) = (positions.device(), positions.dtype());
    let class = positions.clone().narrow(1, 0, 1);
    let grid: Tensor<2> = positions.narrow(1, 1, side * side).reshape([side, side * d]);
    let matrix = |to| kernel.matrix(side, to, &device).cast(dtype);
    let rows = matmul(matrix(height), grid);
    let columns = matrix(width).unsqueeze().repeat_dim(0, height);
    let grid: Tensor<3> = matmul(columns, rows.reshape([height, side, d]));
    Tensor::cat(vec![class, grid.reshape([1, height * width, d])], 1)
}

impl Kernel {
    /// The interpolation matrix `[to, from]`, with pixel centres aligned.
    fn matrix(self, from: usize, to: usize, device: &Device) -> Tensor<2> {
        let mut weights = vec![0.0; to * from];
        for (i, row) in weights.chunks_exact_mut(from).enumerate() {
            let centre = (i as f64 + 0.5) * from as f64 / to as f64;
            match self {
                Self::Plain => plain(centre, row),
                Self::Smoothed => smoothed(centre, (from as f64 / to as f64).max(1.0), row),
            }
        }
        Tensor::from_data(TensorData::new(weights, [to, from]), device)
    }
}

fn plain(centre: f64, row: &mut [f32]) {
    let x = centre - 0.5;
    let first = x.floor() as isize - 1;
    for j in first..first + 4 {
        row[j.clamp(0, row.len() as isize - 1) as usize] += keys(x - j as f64, -0.75) as f32;
    }
}

fn smoothed(centre: f64, scale: f64, row: &mut [f32]) {
    let weights: Vec<f64> =
        (0..row.len()).map(|j| keys((j as f64 + 0.5 - centre) / scale, -0.5)).collect();
    let sum: f64 = weights.iter().sum();
    for (to, weight) in row.iter_mut().zip(weights) {
        *to = (weight / sum) as f32;
    }
}

/// Keys' cubic kernel (IEEE Trans. ASSP 29(6), 1981).
fn keys(x: f64, a: f64) -> f64 {
    let x = x.abs();
    match x {
        ..=1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        ..=2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
        _ => 0.0,
    }
}
