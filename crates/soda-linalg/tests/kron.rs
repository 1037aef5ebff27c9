//! Mode products against the dense Kronecker product, forward and backward.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::tensor::{DType, Device, Tensor};
use common::{EPS, Noise, dmatrix, max_abs, relative, single};
use nalgebra::DMatrix;
use proptest::prelude::*;
use soda_kernels::{has_library, matmul};
use soda_linalg::{KronRows, kron, kron_left, kron_right};

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
    // Beside the norms of what is multiplied: a product that cancels has no digits to compare.
    let near = |side: &str, found: &DMatrix<f64>, a: &DMatrix<f64>, b: &DMatrix<f64>| {
        let error = (a * b - found).norm() / (a.norm() * b.norm());
        assert!(error < 2.0 * EPS, "{side} {sizes:?}: {error:.1e}");
    };
    near("left", &dmatrix(&kron_left(&tensors, single(&w))), &product, &w);
    near("right", &dmatrix(&kron_right(single(&x), &tensors)), &x, &product);
}

#[test]
fn square_factors_of_real_widths() {
    check(&[(5, 5), (8, 8), (8, 8)], 77);
    check(&[(4, 4), (16, 16), (20, 20)], 3);
    check(&[(127, 127)], 5);
}

#[test]
fn nothing_gives_nothing() {
    let zeros = |shape| Tensor::<2>::zeros(shape, &Device::default());
    assert_eq!(kron_left(&[zeros([2, 2]), zeros([3, 0])], zeros([0, 5])).dims(), [6, 5]);
    assert_eq!(kron_right(zeros([0, 6]), &[zeros([2, 4]), zeros([3, 1])]).dims(), [0, 4]);
    assert_eq!(kron_left(&[], zeros([1, 5])).dims(), [1, 5]);
}

/// Large enough to go through in pieces, the last of them smaller.
#[test]
fn pieces_make_the_whole() {
    check(&[(4, 4), (16, 16), (20, 20)], 1000);
    check(&[(9, 5), (7, 30)], 7500);
}

/// Gradients of a random functional of both products, by every factor and by the operand.
fn check_gradients(sizes: &[(usize, usize)], extra: usize, device: &Device) {
    let mut noise = Noise::new(7);
    let (p, n) = sizes.iter().fold((1, 1), |(p, n), size| (p * size.0, n * size.1));
    let on = |a: &DMatrix<f64>| Tensor::<2>::from_data(single(a).to_data(), device);
    let factors: Vec<_> =
        factors(&mut noise, sizes).iter().map(|factor| on(factor).require_grad()).collect();
    let w = on(&noise.matrix(n, extra)).require_grad();
    let x = on(&noise.matrix(extra, p)).require_grad();
    let (to_left, to_right) = (on(&noise.matrix(p, extra)), on(&noise.matrix(extra, n)));

    let loss = |left: Tensor<2>, right: Tensor<2>| {
        (left * to_left.clone()).sum() + (right * to_right.clone()).sum()
    };
    let fast = loss(kron_left(&factors, w.clone()), kron_right(x.clone(), &factors)).backward();
    let product = kron(&factors);
    let slow = loss(matmul(product.clone(), w.clone()), matmul(x.clone(), product)).backward();
    for leaf in factors.iter().chain([&w, &x]) {
        let (fast, slow) = (leaf.grad(&fast).unwrap(), leaf.grad(&slow).unwrap());
        let error = relative(&dmatrix(&slow), &dmatrix(&fast));
        assert!(error < 1e-5, "{sizes:?} {error}");
    }
}

#[test]
fn gradients_are_those_of_the_dense_formula() {
    let device = Device::default().autodiff();
    check_gradients(&[(3, 3), (4, 4), (2, 2)], 5, &device);
    check_gradients(&[(3, 2), (1, 4), (5, 3)], 1, &device);
    check_gradients(&[(6, 6)], 9, &device);
    check_gradients(&[(4, 4), (8, 8), (10, 10)], 4000, &device);
    check_gradients(&[(3, 3), (4, 4), (2, 2)], 5, &device.gradient_checkpointing());
}

/// A constant operand, constant factors, some of either: only what was asked for has a gradient.
#[test]
fn constants_have_no_gradient() {
    let mut noise = Noise::new(8);
    let [a, b] = [3, 4].map(|n| single(&noise.matrix(n, n)));
    let w = single(&noise.matrix(12, 5));
    let dense = kron(&[a.clone(), b.clone()]);
    let on = |tensor: &Tensor<2>| tensor.clone().autodiff().require_grad();

    let trained = on(&w);
    let grads = kron_left(&[a.clone(), b.clone()], trained.clone()).sum().backward();
    let expected = matmul(dense.transpose(), w.ones_like());
    let found = trained.grad(&grads).unwrap();
    assert!(relative(&dmatrix(&expected), &dmatrix(&found)) < 1e-5);

    let trained = on(&b);
    let grads = kron_left(&[a.clone(), trained.clone()], w.clone()).sum().backward();
    let slow = matmul(kron(&[a.clone().autodiff(), trained.clone()]), w.clone()).sum().backward();
    let (found, expected) = (trained.grad(&grads).unwrap(), trained.grad(&slow).unwrap());
    assert!(relative(&dmatrix(&expected), &dmatrix(&found)) < 1e-5);

    assert!(!kron_left(&[a.clone(), b.clone()], w.clone()).is_autodiff());
    assert!(!kron_left(&[a.autodiff(), b], w).is_tracked());
}

/// How far off products of rows in half precision may be, relative to their size: by float32's roundings, or by those to the
/// 11 bits that tensor cores keep of such rows before every product, so many of 2^-11 at most.
fn precision(rows: &Tensor<2>, roundings: f64) -> f64 {
    if has_library(rows) { roundings * 2f64.powi(-11) } else { 4.0 * EPS }
}

/// `found`, in bf16, is off by half a unit in the last of its 8 places, and by what it was computed with.
fn assert_rounded_once(expected: &Tensor<2>, found: &Tensor<2>) {
    let before = precision(found, 3.0);
    let size = max_abs(&dmatrix(expected));
    for (expected, found) in dmatrix(expected).iter().zip(dmatrix(found).iter()) {
        let half = (expected.abs().log2().floor() - 8.0).exp2();
        assert!((expected - found).abs() <= half + before * size, "{found} for {expected}");
    }
}

/// Rows of another type are computed on as the factors are, and rounded once.
#[test]
fn half_precision_is_rounded_once() {
    let mut noise = Noise::new(9);
    let factors = factors(&mut noise, &[(4, 4), (8, 8), (10, 10)]);
    let factors: Vec<_> =
        factors.iter().map(|factor| single(factor).autodiff().require_grad()).collect();
    let half = single(&noise.matrix(40, 320)).cast(DType::BF16).autodiff().require_grad();
    let wide = half.clone().without_autodiff().cast(DType::F32).autodiff().require_grad();
    let (found, expected) =
        (kron_right(half.clone(), &factors), kron_right(wide.clone(), &factors));
    assert_eq!(found.dtype(), DType::BF16);
    assert_rounded_once(&expected, &found);

    let (found, expected) = (found.sum().backward(), expected.sum().backward());
    let by_half = half.grad(&found).unwrap();
    assert_rounded_once(&wide.grad(&expected).unwrap(), &by_half);
    for factor in factors {
        let (found, expected) = (factor.grad(&found).unwrap(), factor.grad(&expected).unwrap());
        // The rows and their gradient are both rounded.
        let error = relative(&dmatrix(&expected), &dmatrix(&found));
        assert!(error < precision(&half, 6.0), "{error}");
    }
}

/// `x Aᵀ` of factors is `x A` of their transposes, value and gradients, in the shapes that kernels take and others.
#[test]
fn transposed_rows_are_rows_of_transposes() {
    let flat = |factors: &[Tensor<2>]| -> Vec<Tensor<1>> {
        factors.iter().map(|factor| factor.clone().flatten(0, 1)).collect()
    };
    for (sizes, dtype) in [
        ([8, 10, 16], DType::F32),
        ([2, 3, 5], DType::F32),
        ([8, 10, 16], DType::BF16),
        ([5, 8, 8], DType::BF16),
    ] {
        let mut noise = Noise::new(11);
        let factors: Vec<_> = sizes.iter().map(|&n| single(&noise.matrix(n, n))).collect();
        let turned: Vec<_> = factors.iter().map(|factor| factor.clone().transpose()).collect();
        let width = sizes.iter().product();
        let [x, dy] = [(), ()].map(|()| single(&noise.matrix(70, width)).cast(dtype));
        let rows = KronRows::new(&sizes);
        let transposed = rows.clone().transposed();
        // Both are rounded once to the type of the rows.
        let most = if dtype == DType::F32 { 4.0 * EPS } else { 2f64.powi(-8) };
        let close = |what: &str, expected: &Tensor<2>, found: &Tensor<2>| {
            let error = relative(&dmatrix(expected), &dmatrix(found));
            assert!(error < most, "{what} of {sizes:?} in {dtype:?}: {error:.1e}");
        };
        let product = rows.product(x.clone(), &flat(&turned));
        close("product", &product, &transposed.product(x.clone(), &flat(&factors)));
        close("product and a dense one", &product, &matmul(x.clone(), kron(&turned).cast(dtype)));

        let expected = rows.gradient(x.clone(), &flat(&turned), dy.clone(), true);
        let found = transposed.gradient(x, &flat(&factors), dy, true);
        close("product again", &product, &found.product);
        close("gradient by rows", &expected.x.unwrap(), &found.x.unwrap());
        for ((expected, found), n) in expected.factors.into_iter().zip(found.factors).zip(sizes) {
            close("factor", &expected.reshape([n, n]).transpose(), &found.reshape([n, n]));
        }
    }
}

#[test]
fn a_product_may_cancel() {
    check(&[(1, 3), (1, 4), (1, 2)], 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rectangular_factors(sizes in proptest::collection::vec((1..5usize, 1..5usize), 1..5), extra in 1..6usize) {
        check(&sizes, extra);
    }
}
