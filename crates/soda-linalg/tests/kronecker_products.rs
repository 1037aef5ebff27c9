//! Products with Kronecker factors against the dense matrix, forward and backward.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::tensor::{DType, Device, Tensor};
use common::{EPS, Noise, dmatrix, max_abs, relative_error, tensor_f32};
use nalgebra::DMatrix;
use proptest::prelude::*;
use soda_kernels::{has_vendor_blas, matmul};
use soda_linalg::{KroneckerRows, kron, kron_left, kron_right};

fn factors(noise: &mut Noise, sizes: &[(usize, usize)]) -> Vec<DMatrix<f64>> {
    sizes.iter().map(|&(p, n)| noise.matrix(p, n).map(|entry| f64::from(entry as f32))).collect()
}

fn dense(factors: &[DMatrix<f64>]) -> DMatrix<f64> {
    factors.iter().fold(DMatrix::identity(1, 1), |product, factor| product.kronecker(factor))
}

fn check(sizes: &[(usize, usize)], extra: usize) {
    let mut noise = Noise::new(sizes.len() as u64);
    let factors = factors(&mut noise, sizes);
    let tensors: Vec<Tensor<2>> = factors.iter().map(tensor_f32).collect();
    let product = dense(&factors);
    assert!(relative_error(&product, &dmatrix(&kron(&tensors))) < 4.0 * EPS);

    let (p, n) = product.shape();
    let (w, x) = (noise.matrix(n, extra), noise.matrix(extra, p));
    // Relative to the norms of the operands: a product whose terms cancel has no correct digits.
    let check_error = |side: &str, found: &DMatrix<f64>, a: &DMatrix<f64>, b: &DMatrix<f64>| {
        let error = (a * b - found).norm() / (a.norm() * b.norm());
        assert!(error < 2.0 * EPS, "{side} {sizes:?}: {error:.1e}");
    };
    check_error("left", &dmatrix(&kron_left(&tensors, tensor_f32(&w))), &product, &w);
    check_error("right", &dmatrix(&kron_right(tensor_f32(&x), &tensors)), &x, &product);
}

#[test]
fn square_factors_of_model_widths() {
    check(&[(5, 5), (8, 8), (8, 8)], 77);
    check(&[(4, 4), (16, 16), (20, 20)], 3);
    check(&[(127, 127)], 5);
}

#[test]
fn empty_operands_give_zeros() {
    let zeros = |shape| Tensor::<2>::zeros(shape, &Device::default());
    assert_eq!(kron_left(&[zeros([2, 2]), zeros([3, 0])], zeros([0, 5])).dims(), [6, 5]);
    assert_eq!(kron_right(zeros([0, 6]), &[zeros([2, 4]), zeros([3, 1])]).dims(), [0, 4]);
    assert_eq!(kron_left(&[], zeros([1, 5])).dims(), [1, 5]);
}

/// Operands that are cut into chunks, the last one smaller.
#[test]
fn chunks_give_the_whole_product() {
    check(&[(4, 4), (16, 16), (20, 20)], 1000);
    check(&[(9, 5), (7, 30)], 7500);
}

/// Compares the gradients of a random functional of both products, with respect to every factor and the
/// operand.
fn check_gradients(sizes: &[(usize, usize)], extra: usize, device: &Device) {
    let mut noise = Noise::new(7);
    let (p, n) = sizes.iter().fold((1, 1), |(p, n), size| (p * size.0, n * size.1));
    let on = |a: &DMatrix<f64>| Tensor::<2>::from_data(tensor_f32(a).to_data(), device);
    let factors: Vec<_> =
        factors(&mut noise, sizes).iter().map(|factor| on(factor).require_grad()).collect();
    let w = on(&noise.matrix(n, extra)).require_grad();
    let x = on(&noise.matrix(extra, p)).require_grad();
    let (to_left, to_right) = (on(&noise.matrix(p, extra)), on(&noise.matrix(extra, n)));

    let loss = |left: Tensor<2>, right: Tensor<2>| {
        (left * to_left.clone()).sum() + (right * to_right.clone()).sum()
    };
    let found = loss(kron_left(&factors, w.clone()), kron_right(x.clone(), &factors)).backward();
    let product = kron(&factors);
    let expected = loss(matmul(product.clone(), w.clone()), matmul(x.clone(), product)).backward();
    for leaf in factors.iter().chain([&w, &x]) {
        let (found, expected) = (leaf.grad(&found).unwrap(), leaf.grad(&expected).unwrap());
        let error = relative_error(&dmatrix(&expected), &dmatrix(&found));
        assert!(error < 1e-5, "{sizes:?} {error}");
    }
}

#[test]
fn gradients_agree_with_the_dense_formula() {
    let device = Device::default().autodiff();
    check_gradients(&[(3, 3), (4, 4), (2, 2)], 5, &device);
    check_gradients(&[(3, 2), (1, 4), (5, 3)], 1, &device);
    check_gradients(&[(6, 6)], 9, &device);
    check_gradients(&[(4, 4), (8, 8), (10, 10)], 4000, &device);
    check_gradients(&[(3, 3), (4, 4), (2, 2)], 5, &device.gradient_checkpointing());
}

/// With a constant operand, or constant factors, only the other arguments have a gradient.
#[test]
fn constants_have_no_gradient() {
    let mut noise = Noise::new(8);
    let [a, b] = [3, 4].map(|n| tensor_f32(&noise.matrix(n, n)));
    let w = tensor_f32(&noise.matrix(12, 5));
    let dense = kron(&[a.clone(), b.clone()]);
    let on = |tensor: &Tensor<2>| tensor.clone().autodiff().require_grad();

    let trained = on(&w);
    let grads = kron_left(&[a.clone(), b.clone()], trained.clone()).sum().backward();
    let expected = matmul(dense.transpose(), w.ones_like());
    let found = trained.grad(&grads).unwrap();
    assert!(relative_error(&dmatrix(&expected), &dmatrix(&found)) < 1e-5);

    let trained = on(&b);
    let grads = kron_left(&[a.clone(), trained.clone()], w.clone()).sum().backward();
    let dense_grads =
        matmul(kron(&[a.clone().autodiff(), trained.clone()]), w.clone()).sum().backward();
    let (found, expected) = (trained.grad(&grads).unwrap(), trained.grad(&dense_grads).unwrap());
    assert!(relative_error(&dmatrix(&expected), &dmatrix(&found)) < 1e-5);

    assert!(!kron_left(&[a.clone(), b.clone()], w.clone()).is_autodiff());
    assert!(!kron_left(&[a.autodiff(), b], w).is_tracked());
}

/// The largest relative error of products of rows in half precision. Tensor cores round such rows to 11 bits
/// before every product, so that each of `roundings` adds 2^-11 at most; otherwise the error is that of f32.
fn precision(rows: &Tensor<2>, roundings: f64) -> f64 {
    if has_vendor_blas(rows) { roundings * 2f64.powi(-11) } else { 4.0 * EPS }
}

/// Asserts that `found`, in bf16, has the error of its 8 bits and of the arithmetic before.
fn assert_rounded_once(expected: &Tensor<2>, found: &Tensor<2>) {
    let arithmetic = precision(found, 3.0);
    let size = max_abs(&dmatrix(expected));
    for (expected, found) in dmatrix(expected).iter().zip(dmatrix(found).iter()) {
        let half = (expected.abs().log2().floor() - 8.0).exp2();
        assert!((expected - found).abs() <= half + arithmetic * size, "{found} for {expected}");
    }
}

/// Rows of another dtype are computed in the factors' dtype, and rounded once.
#[test]
fn half_precision_is_rounded_once() {
    let mut noise = Noise::new(9);
    let factors = factors(&mut noise, &[(4, 4), (8, 8), (10, 10)]);
    let factors: Vec<_> =
        factors.iter().map(|factor| tensor_f32(factor).autodiff().require_grad()).collect();
    let half = tensor_f32(&noise.matrix(40, 320)).cast(DType::BF16).autodiff().require_grad();
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
        // Both the rows and their gradient are rounded.
        let error = relative_error(&dmatrix(&expected), &dmatrix(&found));
        assert!(error < precision(&half, 6.0), "{error}");
    }
}

/// `x Aᵀ` equals `x A` with transposed factors, in value and gradients, for sizes with and without a fused
/// kernel.
#[test]
fn transposed_equals_transposed_factors() {
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
        let factors: Vec<_> = sizes.iter().map(|&n| tensor_f32(&noise.matrix(n, n))).collect();
        let transposes: Vec<_> = factors.iter().map(|factor| factor.clone().transpose()).collect();
        let width = sizes.iter().product();
        let [x, dy] = [(), ()].map(|()| tensor_f32(&noise.matrix(70, width)).cast(dtype));
        let rows = KroneckerRows::new(&sizes);
        let transposed = rows.clone().transposed();
        // Both are rounded once to the dtype of the rows.
        let most = if dtype == DType::F32 { 4.0 * EPS } else { 2f64.powi(-8) };
        let close = |what: &str, expected: &Tensor<2>, found: &Tensor<2>| {
            let error = relative_error(&dmatrix(expected), &dmatrix(found));
            assert!(error < most, "{what} of {sizes:?} in {dtype:?}: {error:.1e}");
        };
        let output = rows.forward(x.clone(), &flat(&transposes));
        close("output", &output, &transposed.forward(x.clone(), &flat(&factors)));
        close(
            "output and dense product",
            &output,
            &matmul(x.clone(), kron(&transposes).cast(dtype)),
        );

        let expected = rows.backward(x.clone(), &flat(&transposes), dy.clone(), true);
        let found = transposed.backward(x, &flat(&factors), dy, true);
        close("output of backward", &output, &found.output);
        close("gradient by rows", &expected.x.unwrap(), &found.x.unwrap());
        for ((expected, found), n) in expected.factors.into_iter().zip(found.factors).zip(sizes) {
            close("factor", &expected.reshape([n, n]).transpose(), &found.reshape([n, n]));
        }
    }
}

#[test]
fn terms_of_a_product_may_cancel() {
    check(&[(1, 3), (1, 4), (1, 2)], 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rectangular_factors(sizes in proptest::collection::vec((1..5usize, 1..5usize), 1..5), extra in 1..6usize) {
        check(&sizes, extra);
    }
}
