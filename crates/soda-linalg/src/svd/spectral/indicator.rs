//! Comparisons, signs and positions as floating-point tensors.

use burn::tensor::{Bool, Int, Tensor};

/// 1 where `test` holds and 0 elsewhere, in the dtype of `x`.
pub(super) fn indicator(
    x: Tensor<3>,
    test: impl FnOnce(Tensor<3>) -> Tensor<3, Bool>,
) -> Tensor<3> {
    let dtype = x.dtype();
    test(x).float().cast(dtype)
}

/// -1 where an entry is negative and 1 elsewhere.
pub(super) fn sign(x: &Tensor<3>) -> Tensor<3> {
    indicator(x.clone(), |x| x.lower_scalar(0)).mul_scalar(-2) + 1
}

/// The column `0, 1, …, t - 1`, `[1, t, 1]`, in the dtype and on the device of `like`.
pub(super) fn positions(t: usize, like: &Tensor<3>) -> Tensor<3> {
    let index = Tensor::<1, Int>::arange(0..t as i64, &like.device());
    index.float().cast(like.dtype()).reshape([1, t, 1])
}
