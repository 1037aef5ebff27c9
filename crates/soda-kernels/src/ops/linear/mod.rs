//! Linear layers.
//!
//! | module | contents |
//! |---|---|
//! | `deferred` | layers whose weight is formed at the moment of use |
//! | `low_rank` | layers with a low-rank update |
//! | `stored` | products with matrices that are quantized or in host memory |

pub(crate) mod deferred;
pub(crate) mod low_rank;
pub(crate) mod stored;

use burn::tensor::Tensor;

use super::bias_residual::bias_residual;
use super::matmul::matmul;

/// A linear layer: `x w + b` for `x` `[.., in]`, a weight `[in, out]` as burn stores it, and a bias `[out]`.
///
/// All leading axes become the rows of one matrix: one large product is faster than one for each sample.
///
/// # Panics
/// If the shapes do not fit.
#[track_caller]
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let mut dims = x.dims();
    let rows = dims[..D - 1].iter().product();
    let y = matmul(x.reshape([rows, dims[D - 1]]), weight);
    dims[D - 1] = y.dims()[1];
    bias_residual(y.reshape(dims), bias.map(|bias| bias.unsqueeze()), None)
}
