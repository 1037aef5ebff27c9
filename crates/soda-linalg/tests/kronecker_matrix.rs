//! `KroneckerMatrix` against dense matrices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::tensor::{Device, Tensor};
use common::{Noise, dmatrix, max_abs, relative_error, tensor_f32};
use nalgebra::DMatrix;
use soda_linalg::{KroneckerMatrix, LinalgError, factor_sizes_within, kron};

fn rotations(seed: u64) -> KroneckerMatrix {
    let mut noise = Noise::new(seed);
    let mut rotation = |n: usize| {
        let skew = noise.matrix(n, n) * 0.3;
        tensor_f32(&(&skew - skew.transpose()).exp())
    };
    KroneckerMatrix::new(vec![rotation(2), rotation(3), rotation(4)]).unwrap()
}

fn dense(product: &KroneckerMatrix) -> DMatrix<f64> {
    dmatrix(&kron(product.factors()))
}

#[test]
fn products_and_transposes_agree_with_dense_matrices() {
    let (r, q) = (rotations(1), rotations(2));
    assert_eq!(r.width(), 24);
    assert!(relative_error(&(dense(&r) * dense(&q)), &dense(&r.compose(&q).unwrap())) < 1e-6);
    assert!(relative_error(&dense(&r).transpose(), &dense(&r.transpose())) < 1e-6);
    let identity = dense(&r.compose(&r.transpose()).unwrap());
    assert!(max_abs(&(identity - DMatrix::identity(24, 24))) < 1e-5);
    let x = Noise::new(3).matrix(24, 5);
    assert!(relative_error(&(dense(&r) * &x), &dmatrix(&r.apply_left(tensor_f32(&x)))) < 1e-5);
    assert!(
        relative_error(
            &(x.transpose() * dense(&r)),
            &dmatrix(&r.apply_right(tensor_f32(&x.transpose())))
        ) < 1e-5
    );
}

/// `log(A ⊗ B ⊗ C)` is the sum of the factors' logarithms, each on its own axis.
#[test]
fn logarithms_of_factors_add_up() {
    let r = rotations(4);
    let logs: Vec<_> = r.log().unwrap().iter().map(dmatrix).collect();
    let eye = |n| DMatrix::<f64>::identity(n, n);
    let sum = logs[0].kronecker(&eye(12))
        + eye(2).kronecker(&logs[1]).kronecker(&eye(4))
        + eye(6).kronecker(&logs[2]);
    assert!(relative_error(&dense(&r), &sum.exp()) < 1e-6);
    assert!(
        relative_error(&dense(&r), &dense(&KroneckerMatrix::exp(&r.log().unwrap()).unwrap()))
            < 1e-6
    );
    let thirds = r.power(1.0 / 3.0).unwrap();
    let whole = thirds.compose(&thirds).unwrap().compose(&thirds).unwrap();
    assert!(relative_error(&dense(&r), &dense(&whole)) < 1e-5);
}

#[test]
fn determinant_signs_agree_with_dense_matrices() {
    for seed in 0..20 {
        let mut noise = Noise::new(seed);
        let product =
            KroneckerMatrix::new([3, 5, 1].map(|n| tensor_f32(&noise.matrix(n, n))).to_vec())
                .unwrap();
        let expected = if dense(&product).determinant() < 0.0 { -1 } else { 1 };
        assert_eq!(product.determinant_sign().unwrap(), expected);
    }
    let device = Device::default();
    let zero = KroneckerMatrix::new(vec![Tensor::eye(2, &device), Tensor::zeros([2, 2], &device)]);
    assert_eq!(zero.unwrap().determinant_sign().unwrap(), 0);
}

#[test]
fn invalid_input_is_an_error() {
    assert!(matches!(KroneckerMatrix::new(vec![]), Err(LinalgError::NoFactors)));
    let device = Device::default();
    let wide = Tensor::<2>::zeros([2, 3], &device);
    assert!(matches!(
        KroneckerMatrix::new(vec![wide]),
        Err(LinalgError::NotSquare { rows: 2, cols: 3 })
    ));
    let eye = |n| Tensor::<2>::eye(n, &device);
    let (a, b) = (vec![eye(2), eye(3)], vec![eye(3), eye(2)]);
    let (a, b) = (KroneckerMatrix::new(a).unwrap(), KroneckerMatrix::new(b).unwrap());
    assert!(matches!(a.compose(&b), Err(LinalgError::ShapeMismatch { .. })));
}

#[test]
fn sizes_keep_their_parameter_budget() {
    assert_eq!(factor_sizes_within(1280, 2_000_000).unwrap(), [1280]);
    assert_eq!(factor_sizes_within(1280, 2_624).unwrap(), [32, 40]);
    assert_eq!(factor_sizes_within(1280, 1_000).unwrap(), [8, 10, 16]);
    assert!(matches!(
        factor_sizes_within(127, 100),
        Err(LinalgError::ParameterBudget { n: 127, least: 16_129, .. })
    ));
    assert!(matches!(factor_sizes_within(0, 100), Err(LinalgError::NoFactorSizes { n: 0, .. })));
}
