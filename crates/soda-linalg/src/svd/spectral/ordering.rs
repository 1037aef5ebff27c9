//! The order of the entries of a column, and the permutation that sorts them, as tensors.

use burn::tensor::Tensor;

use super::indicator::{indicator, positions};

/// The place of each entry of a column `[b, t, 1]` in descending order, from 0; equal entries keep their
/// order.
pub(super) fn rank_descending(column: &Tensor<3>) -> Tensor<3> {
    let t = column.dims()[1];
    let index = positions(t, column);
    let is_earlier = indicator(index.clone().transpose() - index, |gap| gap.lower_scalar(0));
    let lead = column.clone().transpose() - column.clone();
    let is_larger = indicator(lead.clone(), |lead| lead.greater_scalar(0));
    (is_larger + indicator(lead, |lead| lead.equal_scalar(0)) * is_earlier).sum_dim(2)
}

/// The matrix whose product from the right moves column `i` to `place[i]`, for `place` `[b, t, 1]`.
pub(super) fn permutation(place: Tensor<3>) -> Tensor<3> {
    let index = positions(place.dims()[1], &place).transpose();
    indicator(place - index, |gap| gap.equal_scalar(0))
}
