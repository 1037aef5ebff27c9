//! Products with a block-diagonal matrix `diag(B1, B2, …, Bb)`, as OFT has them (arXiv 2306.07280).
//!
//! The matrix is never formed: `b` blocks of `n x n` on a width of `b n` are one batched product, `n`
//! multiply-adds per entry. Works on the tape and off it.

use burn::tensor::Tensor;
use soda_kernels::matmul;

/// `x diag(B1, …, Bb)` for `x` `[rows, b p]` and blocks `[b, p, n]`; the result is `[rows, b n]`.
///
/// # Panics
///
/// If `x` has other than `b p` columns.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use soda_linalg::block_right;
///
/// let x = Tensor::<2>::from_data([[1.0, 2.0, 3.0, 4.0]], &Device::default());
/// let swap = Tensor::<3>::from_data([[[0.0, 1.0], [1.0, 0.0]]], &Device::default());
/// let y: Vec<f32> = block_right(x, swap.repeat_dim(0, 2)).try_to_vec_as()?;
/// assert_eq!(y, [2.0, 1.0, 4.0, 3.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn block_right(x: Tensor<2>, blocks: Tensor<3>) -> Tensor<2> {
    let ([rows, cols], [b, p, n]) = (x.dims(), blocks.dims());
    assert_eq!(cols, b * p, "{b} blocks act on {} entries, the tensor has {cols}", b * p);
    matmul(x.reshape([rows, b, p]).swap_dims(0, 1), blocks).swap_dims(0, 1).reshape([rows, b * n])
}

/// `diag(B1, …, Bb) w` for `w` `[b n, cols]` and blocks `[b, p, n]`; the result is `[b p, cols]`.
///
/// # Panics
///
/// If `w` has other than `b n` rows.
#[track_caller]
pub fn block_left(blocks: Tensor<3>, w: Tensor<2>) -> Tensor<2> {
    let ([b, p, n], [rows, cols]) = (blocks.dims(), w.dims());
    assert_eq!(rows, b * n, "{b} blocks act on {} entries, the tensor has {rows}", b * n);
    matmul(blocks, w.reshape([b, n, cols])).reshape([b * p, cols])
}
