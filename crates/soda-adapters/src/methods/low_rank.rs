//! The product of rows with a weight that has a low-rank update.

use burn::tensor::Tensor;
use soda_kernels::{add_low_rank, linear_low_rank, matmul};

use super::cost_model::product_dtype;
use crate::base_weight::BaseWeight;

/// Computes `x (w + a b)` as `x w + (x a) b`, for `x` `[rows, in]`, `w` `[in, out]`, `a` `[in, r]` and `b`
/// `[r, out]`. `x` and `w` are in the float type of the network.
pub(crate) fn low_rank_product(
    x: &Tensor<2>,
    w: &BaseWeight,
    a: Tensor<2>,
    b: Tensor<2>,
) -> Tensor<2> {
    let dtype = product_dtype(x, a.dtype());
    if dtype == w.dtype() {
        return match w.as_float() {
            Some(w) => linear_low_rank(x.clone(), w.clone(), a, b),
            None => add_low_rank(w.product(x.clone()), x.clone(), a, b),
        };
    }
    let change = matmul(matmul(x.clone().cast(dtype), a.cast(dtype)), b.cast(dtype));
    w.product(x.clone()) + change.cast(w.dtype())
}
