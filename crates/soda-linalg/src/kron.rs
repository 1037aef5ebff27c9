//! Kronecker products `A1 ⊗ A2 ⊗ … ⊗ Am` as operators that are never formed.
//!
//! `(A ⊗ B)[(i, j), (k, l)] = A[i, k] B[j, l]`: the first factor is the slowest index. Applied to a
//! vector of length `n1 n2 … nm` read as an m-way array, factor `i` acts on axis `i` alone (a mode
//! product; Van Loan, The ubiquitous Kronecker product, 2000). For square factors that is
//! `(Π nᵢ)(Σ nᵢ)` multiply-adds a vector, where the matrix would cost `(Π nᵢ)²` and as much memory.
//!
//! Works on the tape and off it; factors may be rectangular.

use burn::tensor::Tensor;

use crate::backend::{self, Function as _};
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
    apply(factors, w, false)
}

/// `x (A1 ⊗ … ⊗ Am)` for `x` `[rows, Π nᵢ]` and factors `[nᵢ, pᵢ]`; the result is `[rows, Π pᵢ]`.
///
/// Computed in the factors' type, and rounded once to that of `x` where it has another; tensor cores keep 11 bits of such
/// rows from one factor to the next as well.
///
/// # Panics
///
/// If `x` has other than `Π nᵢ` columns.
#[track_caller]
pub fn kron_right(x: Tensor<2>, factors: &[Tensor<2>]) -> Tensor<2> {
    apply(factors, x, true)
}

/// [`kron_right`] with square factors as vectors, and its gradient: for a function that has one in it and a gradient of
/// its own ([`with_gradient`](crate::with_gradient)).
#[derive(Clone, Debug)]
pub struct KronRows(Modes);

/// What [`KronRows::gradient`] gives.
#[derive(Clone, Debug)]
pub struct KronGradient {
    /// By the rows, where wanted.
    pub x: Option<Tensor<2>>,
    /// By the factors.
    pub factors: Vec<Tensor<1>>,
    /// The product once more.
    pub product: Tensor<2>,
}

impl KronRows {
    /// Of factors `[nᵢ, nᵢ]`.
    pub fn new(sizes: &[usize]) -> Self {
        Self(Modes { sizes: sizes.iter().map(|&n| [n, n]).collect(), transposed: true })
    }

    /// With the factors' transposes in their place: `x (A1 ⊗ … ⊗ Am)ᵀ`.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self(Modes { transposed: !self.0.transposed, ..self.0 })
    }

    /// `x (A1 ⊗ … ⊗ Am)` for `x` `[rows, Π nᵢ]` and factors `[nᵢ nᵢ]`.
    pub fn product(&self, x: Tensor<2>, factors: &[Tensor<1>]) -> Tensor<2> {
        self.0.forward(x.unsqueeze_dim(2), factors).flatten(1, 2)
    }

    /// Its gradients from that of its value, by `x` where wanted; off the tape.
    pub fn gradient(
        &self,
        x: Tensor<2>,
        factors: &[Tensor<1>],
        grad: Tensor<2>,
        by_x: bool,
    ) -> KronGradient {
        let (x, factors, product) = self.0.gradient_again(x, factors, grad, by_x);
        KronGradient { x, factors, product }
    }
}

#[track_caller]
fn apply(factors: &[Tensor<2>], operand: Tensor<2>, right: bool) -> Tensor<2> {
    // `x A` is `Aᵀ` along the second axis of `x`.
    let size = |factor: &Tensor<2>| {
        let [rows, cols] = factor.dims();
        if right { [cols, rows] } else { [rows, cols] }
    };
    let modes = Modes { sizes: factors.iter().map(size).collect(), transposed: right };
    let axis = usize::from(right);
    let (mut dims, mut expected) = (operand.dims(), 1);
    let (found, extra) = (dims[axis], dims[1 - axis]);
    dims[axis] = 1;
    for [p, n] in &modes.sizes {
        (dims[axis], expected) = (dims[axis] * p, expected * n);
    }
    assert_eq!(found, expected, "the factors act on {expected} entries, the tensor has {found}");
    if factors.is_empty() {
        return operand;
    }
    if extra * found * dims[axis] == 0 {
        // Sums over nothing; and burn reads a 0 in a new shape as the old length.
        return Tensor::zeros(dims, (&operand.device(), operand.dtype()));
    }
    let x =
        if right { operand.reshape([extra, found, 1]) } else { operand.reshape([1, found, extra]) };
    let flat: Vec<_> = factors.iter().map(|factor| factor.clone().flatten(0, 1)).collect();
    backend::with_gradient(&modes, x, &flat).reshape(dims)
}
