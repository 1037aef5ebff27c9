//! Products with a Kronecker product of matrices.

use burn::tensor::Tensor;

use super::mode_products::ModeProducts;
use crate::backend::apply_autograd;

/// Returns the dense matrix `A1 ⊗ … ⊗ Am`, `[Π pᵢ, Π nᵢ]` for factors `[pᵢ, nᵢ]` of one dtype.
///
/// `(A ⊗ B)[(i, j), (k, l)] = A[i, k] B[j, l]`, so that the first factor has the slowest index. The result
/// takes `Π pᵢ Π nᵢ` entries of memory: [`kron_left`] and [`kron_right`] multiply without it.
///
/// # Panics
///
/// If `factors` is empty: there is no device for the result.
#[track_caller]
pub fn kron(factors: &[Tensor<2>]) -> Tensor<2> {
    let product = factors.iter().cloned().reduce(|a, b| {
        let ([p, n], [q, m]) = (a.dims(), b.dims());
        let outer = a.reshape([p, 1, n, 1]) * b.reshape([1, q, 1, m]);
        outer.reshape([p * q, n * m])
    });
    product.expect("a Kronecker product has at least one factor")
}

/// Returns `(A1 ⊗ … ⊗ Am) w`, `[Π pᵢ, cols]`, for `w` `[Π nᵢ, cols]` and factors `[pᵢ, nᵢ]`.
///
/// The first axis of `w` is read as an array `n1 × … × nm`, and factor `i` multiplies along axis `i` (Van
/// Loan, The ubiquitous Kronecker product, 2000). Square factors take `(Π nᵢ)(Σ nᵢ)` multiply-adds per
/// column, where the dense matrix takes `(Π nᵢ)²`.
///
/// The factors' dtype is the dtype of the arithmetic, and the result is rounded once to the dtype of `w`.
/// Without factors, the result is `w`. Autodiff tensors are differentiated.
///
/// # Panics
///
/// If `w` does not have `Π nᵢ` rows.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use soda_linalg::{kron, kron_left};
///
/// let random = |shape| Tensor::<2>::random(shape, Distribution::Default, &Device::default());
/// let (factors, w) = ([random([2, 2]), random([3, 3])], random([6, 5]));
/// let dense = kron(&factors).matmul(w.clone());
/// assert!(kron_left(&factors, w).all_close(dense, None, Some(1e-6)));
/// ```
#[track_caller]
pub fn kron_left(factors: &[Tensor<2>], w: Tensor<2>) -> Tensor<2> {
    apply(factors, w, false)
}

/// Returns `x (A1 ⊗ … ⊗ Am)`, `[rows, Π pᵢ]`, for `x` `[rows, Π nᵢ]` and factors `[nᵢ, pᵢ]`.
///
/// Method and cost are those of [`kron_left`], with one row of `x` in place of a column. The factors' dtype
/// is the dtype of the arithmetic, and the result is rounded once to the dtype of `x`. On tensor cores, rows
/// in half precision are also rounded to 11 bits between two factors.
///
/// # Panics
///
/// If `x` does not have `Π nᵢ` columns.
#[track_caller]
pub fn kron_right(x: Tensor<2>, factors: &[Tensor<2>]) -> Tensor<2> {
    apply(factors, x, true)
}

#[track_caller]
fn apply(factors: &[Tensor<2>], operand: Tensor<2>, right: bool) -> Tensor<2> {
    // `x A` is the product of `Aᵀ` along the second axis of `x`.
    let size = |factor: &Tensor<2>| {
        let [rows, cols] = factor.dims();
        if right { [cols, rows] } else { [rows, cols] }
    };
    let products = ModeProducts { sizes: factors.iter().map(size).collect(), transposed: right };
    let axis = usize::from(right);
    let (mut dims, mut expected) = (operand.dims(), 1);
    let (found, extra) = (dims[axis], dims[1 - axis]);
    dims[axis] = 1;
    for [p, n] in &products.sizes {
        (dims[axis], expected) = (dims[axis] * p, expected * n);
    }
    assert_eq!(found, expected, "the factors act on {expected} entries, the tensor has {found}");
    if factors.is_empty() {
        return operand;
    }
    if extra * found * dims[axis] == 0 {
        // Sums over nothing; and burn's `reshape` reads a 0 as the old length.
        return Tensor::zeros(dims, (&operand.device(), operand.dtype()));
    }
    let x =
        if right { operand.reshape([extra, found, 1]) } else { operand.reshape([1, found, extra]) };
    let flat: Vec<_> = factors.iter().map(|factor| factor.clone().flatten(0, 1)).collect();
    apply_autograd(&products, x, &flat).reshape(dims)
}
