//! Kronecker products `A1 ⊗ A2 ⊗ … ⊗ Am` as operators that are never formed.
//!
//! `(A ⊗ B)[(i, j), (k, l)] = A[i, k] B[j, l]`: the first factor is the slowest index. Applied to a
//! vector of length `n1 n2 … nm` read as an m-way array, factor `i` acts on axis `i` alone (a mode
//! product; Van Loan, The ubiquitous Kronecker product, 2000). For square factors that is
//! `(Π nᵢ)(Σ nᵢ)` multiply-adds a vector, where the matrix would cost `(Π nᵢ)²` and as much memory.
//!
//! Works on the tape and off it; factors may be rectangular.

use burn::tensor::Tensor;

use crate::backend;
use crate::modes::Modes;

/// The matrix `A1 ⊗ … ⊗ Am`, `[Π pᵢ, Π nᵢ]` for factors `[pᵢ, nᵢ]`.
///
/// For tests and small sizes: its memory is the product of all the factors'.
///
/// # Panics
///
/// Without a factor: there is no device to put the 1 on.
#[track_caller]
pub fn kron(factors: &[Tensor<2>]) -> Tensor<2> {
    let product = factors.iter().cloned().reduce(|a, b| {
        let ([p, n], [q, m]) = (a.dims(), b.dims());
        let outer = a.reshape([p, 1, n, 1]) * b.reshape([1, q, 1, m]);
        outer.reshape([p * q, n * m])
    });
    product.expect("a Kronecker product has at least one factor")
}

/// `(A1 ⊗ … ⊗ Am) w` for `w` `[Π nᵢ, cols]` and factors `[pᵢ, nᵢ]`; the result is `[Π pᵢ, cols]`.
///
/// # Panics
///
/// If `w` has other than `Π nᵢ` rows.
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
    let [rows, cols] = w.dims();
    assert_width(rows, factors.iter().map(|factor| factor.dims()[1]).product());
    apply(factors, w.reshape([1, rows, cols]), false).squeeze_dim(0)
}

/// `x (A1 ⊗ … ⊗ Am)` for `x` `[rows, Π nᵢ]` and factors `[nᵢ, pᵢ]`; the result is `[rows, Π pᵢ]`.
///
/// # Panics
///
/// If `x` has other than `Π nᵢ` columns.
#[track_caller]
pub fn kron_right(x: Tensor<2>, factors: &[Tensor<2>]) -> Tensor<2> {
    let [rows, cols] = x.dims();
    assert_width(cols, factors.iter().map(|factor| factor.dims()[0]).product());
    // `x A` is `Aᵀ` along the axis of `x`.
    apply(factors, x.reshape([rows, cols, 1]), true).squeeze_dim(2)
}

fn apply(factors: &[Tensor<2>], x: Tensor<3>, transposed: bool) -> Tensor<3> {
    if factors.is_empty() {
        return x;
    }
    let size = |factor: &Tensor<2>| {
        let [rows, cols] = factor.dims();
        if transposed { [cols, rows] } else { [rows, cols] }
    };
    let modes = Modes { sizes: factors.iter().map(size).collect(), transposed };
    // One node of the tape, whatever their number.
    let flat = Tensor::cat(factors.iter().map(|factor| factor.clone().flatten(0, 1)).collect(), 0);
    backend::apply(&modes, x, flat)
}

#[track_caller]
fn assert_width(found: usize, expected: usize) {
    assert_eq!(found, expected, "the factors act on {expected} entries, the tensor has {found}");
}
