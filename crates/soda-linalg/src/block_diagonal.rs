//! Products with a block-diagonal matrix that is never formed.

use burn::tensor::Tensor;
use soda_kernels::matmul;

/// Returns `x diag(B1, …, Bb)` for a block-diagonal matrix, as OFT uses it (arXiv 2306.07280).
///
/// `x` is `[rows, b p]`, `blocks` is `[b, p, n]`, and the result is `[rows, b n]`, all of one float dtype.
/// The product is one batched matrix product of `rows b p n` multiply-adds. Autodiff tensors are
/// differentiated.
///
/// # Panics
///
/// If `x` does not have `b p` columns.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use soda_linalg::block_diag_right;
///
/// let x = Tensor::<2>::from_data([[1.0, 2.0, 3.0, 4.0]], &Device::default());
/// let swap = Tensor::<3>::from_data([[[0.0, 1.0], [1.0, 0.0]]], &Device::default());
/// let y: Vec<f32> = block_diag_right(x, swap.repeat_dim(0, 2)).try_to_vec_as()?;
/// assert_eq!(y, [2.0, 1.0, 4.0, 3.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn block_diag_right(x: Tensor<2>, blocks: Tensor<3>) -> Tensor<2> {
    let ([rows, cols], [b, p, n]) = (x.dims(), blocks.dims());
    assert_eq!(cols, b * p, "{b} blocks act on {} columns, the tensor has {cols}", b * p);
    matmul(x.reshape([rows, b, p]).swap_dims(0, 1), blocks).swap_dims(0, 1).reshape([rows, b * n])
}

/// Returns `diag(B1, …, Bb) w` for a block-diagonal matrix.
///
/// `w` is `[b n, cols]`, `blocks` is `[b, p, n]`, and the result is `[b p, cols]`, all of one float dtype.
/// The product is one batched matrix product of `b p n cols` multiply-adds. Autodiff tensors are
/// differentiated.
///
/// # Panics
///
/// If `w` does not have `b n` rows.
#[track_caller]
pub fn block_diag_left(blocks: Tensor<3>, w: Tensor<2>) -> Tensor<2> {
    let ([b, p, n], [rows, cols]) = (blocks.dims(), w.dims());
    assert_eq!(rows, b * n, "{b} blocks act on {} rows, the tensor has {rows}", b * n);
    matmul(blocks, w.reshape([b, n, cols])).reshape([b * p, cols])
}
