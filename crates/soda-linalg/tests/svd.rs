//! The laws of a singular value decomposition, for every constructor of `Svd`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::tensor::{DType, Device, Tensor};
use common::{
    EPS, Noise, any_matrix, cases, dmatrix, entries, max_abs, orthogonality_error, relative_error,
    tensor, tensor_f32,
};
use nalgebra::DMatrix;
use proptest::prelude::*;
use soda_linalg::{LinalgError, Svd};

/// Asserts a backward error of 50 eps √max(m, n), an orthogonality error of 80 eps √k, descending singular
/// values, and the sign convention.
fn assert_laws(name: &str, a: &DMatrix<f64>, svd: &Svd, eps: f64) {
    let (m, n) = a.shape();
    let (u, s, vt) = (dmatrix(&svd.u), entries(&svd.s), dmatrix(&svd.vt));
    let k = m.min(n);
    assert_eq!((u.shape(), s.len(), vt.shape()), ((m, k), k, (k, n)), "{name}");

    let scaled = DMatrix::from_fn(m, k, |i, j| u[(i, j)] * s[j]);
    let bound = 50.0 * eps * (m.max(n) as f64).sqrt();
    // Subnormal singular values have an absolute error in f32.
    let floor = if max_abs(a) < 1e-37 { 1e-4 } else { 0.0 };
    assert!(relative_error(a, &(scaled * &vt)) <= bound + floor, "{name}: backward error");
    let bound = 80.0 * eps * (k as f64).sqrt();
    assert!(
        orthogonality_error(&u) <= bound && orthogonality_error(&vt) <= bound,
        "{name}: {} {}",
        orthogonality_error(&u),
        orthogonality_error(&vt)
    );

    assert!(s.iter().all(|s| *s >= 0.0) && s.is_sorted_by(|a, b| a >= b), "{name}: {s:?}");
    for column in u.column_iter() {
        assert!(column[column.icamax()] >= 0.0, "{name}: sign convention");
    }
}

#[test]
fn thin_satisfies_the_laws() {
    for (name, a) in cases() {
        assert_laws(name, &a, &Svd::thin(&tensor_f32(&a)).unwrap(), EPS);
    }
}

#[test]
fn spectral_divide_satisfies_the_laws() {
    let matrices: Vec<Tensor<2>> = cases().iter().map(|(_, a)| tensor_f32(a)).collect();
    for ((name, a), svd) in cases().iter().zip(Svd::thin_batch_spectral_divide(&matrices)) {
        assert_laws(name, a, &svd.unwrap(), EPS);
    }
    assert!(Svd::thin_batch_spectral_divide(&[]).is_empty());
}

#[test]
fn a_batch_satisfies_the_laws() {
    let matrices: Vec<Tensor<2>> = cases().iter().map(|(_, a)| tensor_f32(a)).collect();
    for ((name, a), svd) in cases().iter().zip(Svd::thin_batch(&matrices)) {
        assert_laws(name, a, &svd.unwrap(), EPS);
    }
    assert!(Svd::thin_batch(&[]).is_empty());
}

/// The factors via f64 are those of the f64 matrix, rounded to f32.
#[test]
fn factors_via_f64_are_rounded_once() {
    if !Device::default().supports_dtype(DType::F64) {
        return;
    }
    let matrices: Vec<Tensor<2>> = cases().iter().map(|(_, a)| tensor_f32(a)).collect();
    let double: Vec<_> = matrices.iter().map(|a| a.clone().cast(DType::F64)).collect();
    let found = Svd::thin_batch_via_f64(&matrices);
    for (((name, a), svd), double) in cases().iter().zip(found).zip(Svd::thin_batch(&double)) {
        let (svd, double) = (svd.unwrap(), double.unwrap());
        assert_laws(name, a, &svd, EPS);
        let equal = |a: Tensor<2>, b: Tensor<2>| a.to_data() == b.cast(DType::F32).to_data();
        assert!(equal(svd.u, double.u) && equal(svd.vt, double.vt), "{name}");
        assert!(equal(svd.s.unsqueeze(), double.s.unsqueeze()), "{name}");
    }
    let huge = Tensor::<2>::full([4, 4], f32::MAX, &Device::default());
    let error = Svd::thin_batch_via_f64(&[huge]).remove(0);
    assert!(matches!(error, Err(LinalgError::Overflow { rows: 4, cols: 4 })));
    assert!(Svd::thin_batch_via_f64(&[]).is_empty());
}

#[test]
fn singular_values_agree_with_nalgebra() {
    let a = Noise::new(2).matrix(48, 33).map(|entry| f64::from(entry as f32));
    let found = entries(&Svd::thin(&tensor_f32(&a)).unwrap().s);
    let expected = a.singular_values();
    for (found, expected) in found.iter().zip(expected.iter()) {
        assert!((found - expected).abs() <= 20.0 * EPS * expected.max(1.0), "{found} {expected}");
    }
}

#[test]
fn double_precision_is_kept() {
    if !Device::default().supports_dtype(DType::F64) {
        return;
    }
    let a = Noise::new(3).with_spectrum(40, 30, |t| 10f64.powf(-8.0 * t));
    let svd = Svd::thin(&tensor(&a, DType::F64)).unwrap();
    assert_eq!(svd.u.dtype(), DType::F64);
    assert_laws("f64", &a, &svd, f64::EPSILON);
}

#[test]
fn half_precision_is_decomposed_in_single() {
    if !Device::default().supports_dtype(DType::BF16) {
        return;
    }
    let a = tensor_f32(&Noise::new(4).matrix(20, 12)).cast(DType::BF16);
    let svd = Svd::thin(&a).unwrap();
    assert_eq!(svd.u.dtype(), DType::F32);
    assert_laws("bf16", &dmatrix(&a.cast(DType::F32)), &svd, EPS);
}

#[test]
fn an_autodiff_tensor_is_a_constant() {
    let device = Device::default().autodiff();
    let a = Tensor::<2>::ones([3, 2], &device).require_grad();
    assert!(!Svd::thin(&a).unwrap().u.is_autodiff());
}

#[test]
fn invalid_input_is_an_error() {
    let mut a = Noise::new(5).matrix(4, 3);
    a[(2, 1)] = f64::NAN;
    let error = Svd::thin(&tensor_f32(&a)).unwrap_err();
    assert!(matches!(error, LinalgError::NotFinite { row: 2, col: 1, rows: 4, cols: 3, .. }));
    let empty = Tensor::<2>::zeros([0, 3], &Device::default());
    assert!(matches!(Svd::thin(&empty), Err(LinalgError::Empty { rows: 0, cols: 3 })));
    let huge = Tensor::<2>::full([4, 4], f32::MAX, &Device::default());
    assert!(matches!(Svd::thin(&huge), Err(LinalgError::Overflow { .. })));

    let batch = Svd::thin_batch(&[tensor_f32(&a), tensor_f32(&Noise::new(6).matrix(2, 2)), empty]);
    assert_eq!(batch.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false]);
}

proptest! {
    #[test]
    fn any_matrix_satisfies_the_laws(a in any_matrix()) {
        assert_laws("any", &a, &Svd::thin(&tensor_f32(&a)).unwrap(), EPS);
        let spectral = Svd::thin_batch_spectral_divide(&[tensor_f32(&a)]).remove(0);
        assert_laws("spectral divide", &a, &spectral.unwrap(), EPS);
    }
}
