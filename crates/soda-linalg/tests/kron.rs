//! Mode products against the dense Kronecker product, forward and backward.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::tensor::Tensor;
use common::{EPS, Noise, dmatrix, relative, single};
use nalgebra::DMatrix;
use proptest::prelude::*;
use soda_linalg::{kron, kron_left, kron_right};

fn factors(noise: &mut Noise, sizes: &[(usize, usize)]) -> Vec<DMatrix<f64>> {
    sizes.iter().map(|&(p, n)| noise.matrix(p, n).map(|entry| f64::from(entry as f32))).collect()
}

fn dense(factors: &[DMatrix<f64>]) -> DMatrix<f64> {
    factors.iter().fold(DMatrix::identity(1, 1), |product, factor| product.kronecker(factor))
}

fn check(sizes: &[(usize, usize)], extra: usize) {
    let mut noise = Noise::new(sizes.len() as u64);
    let factors = factors(&mut noise, sizes);
    let tensors: Vec<Tensor<2>> = factors.iter().map(single).collect();
    let product = dense(&factors);
    assert!(relative(&product, &dmatrix(&kron(&tensors))) < 4.0 * EPS);

    let (p, n) = product.shape();
    let (w, x) = (noise.matrix(n, extra), noise.matrix(extra, p));
    let left = dmatrix(&kron_left(&tensors, single(&w)));
    assert!(relative(&(&product * &w), &left) < 20.0 * EPS, "left {sizes:?}");
    let right = dmatrix(&kron_right(single(&x), &tensors));
    assert!(relative(&(&x * &product), &right) < 20.0 * EPS, "right {sizes:?}");
}

#[test]
fn square_factors_of_real_widths() {
    check(&[(5, 5), (8, 8), (8, 8)], 77);
    check(&[(4, 4), (16, 16), (20, 20)], 3);
    check(&[(127, 127)], 5);
}

/// Gradients of a random functional of both products, by every factor and by the operand.
#[test]
fn gradients_are_those_of_the_dense_formula() {
    let mut noise = Noise::new(7);
    let leaf = |a: DMatrix<f64>| single(&a).autodiff().require_grad();
    let factors: Vec<_> =
        factors(&mut noise, &[(3, 3), (4, 4), (2, 2)]).into_iter().map(leaf).collect();
    let (w, x) = (leaf(noise.matrix(24, 5)), leaf(noise.matrix(5, 24)));
    let weight = single(&noise.matrix(24, 5)).autodiff();

    let loss = |left: Tensor<2>, right: Tensor<2>| {
        ((left + right.transpose()).square() * weight.clone()).sum()
    };
    let fast = loss(kron_left(&factors, w.clone()), kron_right(x.clone(), &factors)).backward();
    let product = kron(&factors);
    let slow = loss(product.clone().matmul(w.clone()), x.clone().matmul(product)).backward();
    for leaf in factors.iter().chain([&w, &x]) {
        let (fast, slow) = (leaf.grad(&fast).unwrap(), leaf.grad(&slow).unwrap());
        assert!(relative(&dmatrix(&slow), &dmatrix(&fast)) < 1e-5);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rectangular_factors(sizes in proptest::collection::vec((1..5usize, 1..5usize), 1..5), extra in 1..6usize) {
        check(&sizes, extra);
    }
}
