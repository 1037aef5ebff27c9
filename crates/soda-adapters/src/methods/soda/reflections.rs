//! Products of Householder reflections in a compact form that is exactly the identity at the start.
//!
//! `R = H_r ⋯ H_1` with `Hᵢ = I - 2 uᵢ uᵢᵀ / ‖uᵢ‖²`, as HRA has it (arXiv 2405.17484; PEFT's `W0 H_1 ⋯ H_r`).
//! The vectors start equal in pairs, and a pair of equal reflections is the identity. For unit vectors `a`
//! and `b` of a pair, with `e = b - a` and `ε = ‖e‖²`, so that `aᵀb = 1 - ε/2`:
//!
//! ```text
//! H_a H_b = I + [a e] M [a e]ᵀ        M = [ -2ε  2 - 2ε ]
//!                                         [ -2   -2     ]
//! ```
//!
//! Every term has a factor `e`, so that rounding cannot change a weight while `e = 0`. The pairs join as
//! compact products do: `(I + Z S Zᵀ)(I + z M zᵀ) = I + [Z z] [S, S Zᵀz M; 0, M] [Z z]ᵀ`. With all `r`
//! columns a rotation costs `2 r` multiply-adds for each entry of a row.

use burn::tensor::Tensor;
use soda_kernels::matmul;

/// Computes `Z` `[n, r]` and `S` `[r, r]` with `R = I + Z S Zᵀ`, for vectors `u` `[n, r]` and an even `r`.
///
/// The result is on the autodiff graph if `u` is.
pub(super) fn compact(u: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let [n, r] = u.dims();
    // A bound that no trained vector reaches: a vector of zeros stays finite.
    let norms = u.clone().square().sum_dim(0).sqrt().clamp_min(1e-15);
    let unit = (u / norms).reshape([n, r / 2, 2]);
    let a = unit.clone().narrow(2, 0, 1);
    let e = unit.narrow(2, 1, 1) - a.clone();
    let squares = e.clone().square().sum_dim(0).reshape([r / 2, 1]);
    let z = Tensor::cat(vec![a, e], 2).reshape([n, r]);

    // The rows of all `M`, `[r/2, 4]`.
    let constant = squares.zeros_like().add_scalar(-2.0);
    let first = squares.mul_scalar(-2.0);
    let second = first.clone().add_scalar(2.0);
    let middles = Tensor::cat(vec![first, second, constant.clone(), constant], 1);
    let gram = matmul(z.clone().transpose(), z.clone());
    let middle = |pair: usize| middles.clone().narrow(0, pair, 1).reshape([2, 2]);
    let mut s = middle(0);
    for pair in 1..r / 2 {
        let (m, before) = (middle(pair), 2 * pair);
        let overlap = gram.clone().narrow(0, 0, before).narrow(1, before, 2);
        let right = matmul(s.clone(), matmul(overlap, m.clone()));
        let below = Tensor::zeros([2, before], (&s.device(), s.dtype()));
        let upper = Tensor::cat(vec![s, right], 1);
        s = Tensor::cat(vec![upper, Tensor::cat(vec![below, m], 1)], 0);
    }
    // `R` is the product of the reflections from the last to the first.
    (z, s.transpose())
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, Distribution};
    use soda_testing::max_abs;

    use super::*;

    fn random(shape: [usize; 2]) -> Tensor<2> {
        let normal = Distribution::Normal(0.0, 1.0);
        let values = Tensor::<2>::random(shape, normal, &Device::default());
        values.cast(if Device::default().supports_dtype(DType::F64) {
            DType::F64
        } else {
            DType::F32
        })
    }

    fn eye(n: usize, like: &Tensor<2>) -> Tensor<2> {
        Tensor::<2>::eye(n, &like.device()).cast(like.dtype())
    }

    fn largest(a: Tensor<2>) -> f64 {
        max_abs(a.into_data().iter::<f64>())
    }

    fn tolerance(like: &Tensor<2>) -> f64 {
        if like.dtype() == DType::F64 { 1e-13 } else { 1e-5 }
    }

    #[test]
    fn compact_form_is_the_product_of_the_reflections() {
        let (n, r) = (9, 6);
        let u = random([n, r]);
        let mut product = eye(n, &u);
        for i in 0..r {
            let column = u.clone().narrow(1, i, 1);
            let square = column.clone().square().sum().into_scalar::<f64>();
            let outer = matmul(column.clone(), column.transpose());
            product = matmul(eye(n, &u) - outer.mul_scalar(2.0 / square), product);
        }
        let (z, s) = compact(u.clone());
        let found = eye(n, &u) + matmul(matmul(z.clone(), s), z.transpose());
        assert!(largest(found - product) < tolerance(&u));
    }

    /// All vectors are nearly the same, where truncated series of the product would grow.
    #[test]
    fn products_of_similar_reflections_stay_orthogonal() {
        let (n, r) = (24, 24);
        let first = random([n, 1]);
        let u = first.repeat_dim(1, r) + random([n, r]).mul_scalar(0.1);
        let (z, s) = compact(u.clone());
        let found = eye(n, &u) + matmul(matmul(z.clone(), s), z.transpose());
        let gram = matmul(found.clone().transpose(), found);
        assert!(largest(gram - eye(n, &u)) < tolerance(&u));
    }
}
