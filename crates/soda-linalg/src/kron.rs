//! Kronecker products `A1 ⊗ A2 ⊗ … ⊗ Am` as operators that are never formed.
//!
//! `(A ⊗ B)[(i, j), (k, l)] = A[i, k] B[j, l]`: the first factor is the slowest index. Applied to a
//! vector of length `n1 n2 … nm` read as an m-way array, factor `i` acts on axis `i` alone (a mode
//! product; Van Loan, The ubiquitous Kronecker product, 2000). For square factors that is
//! `(Π nᵢ)(Σ nᵢ)` multiply-adds a vector, where the matrix would cost `(Π nᵢ)²` and as much memory.
//!
//! Everything is made of matmul, reshape and transpose, so it works on the tape and off it. Factors
//! may be rectangular.

use burn::tensor::Tensor;

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
    // `before` runs over the axes that are done, `after` over those to come and the columns.
    let (mut before, mut after) = (1, rows * cols);
    let mut w = w.reshape([1, 1, after]);
    for factor in factors {
        let [p, n] = factor.dims();
        after /= n.max(1);
        w = factor.clone().unsqueeze_dim::<3>(0).matmul(w.reshape([before, n, after]));
        before *= p;
    }
    w.reshape([before, cols])
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
    // From the last axis to the first: `x` is `[before, n, after]`, with `after` already done.
    let (mut before, mut after) = (rows * cols, 1);
    let mut x = x.reshape([1, before, 1]);
    for factor in factors.iter().rev() {
        let [n, p] = factor.dims();
        before /= n.max(1);
        x = match after {
            // The axis is contiguous: one plain matrix product.
            1 => x.reshape([1, before, n]).matmul(factor.clone().unsqueeze_dim(0)),
            _ => factor.clone().transpose().unsqueeze_dim(0).matmul(x.reshape([before, n, after])),
        };
        after *= p;
    }
    x.reshape([rows, after])
}

#[track_caller]
fn assert_width(found: usize, expected: usize) {
    assert_eq!(found, expected, "the factors act on {expected} entries, the tensor has {found}");
}
