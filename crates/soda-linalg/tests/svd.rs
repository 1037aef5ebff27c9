//! The laws of a singular value decomposition.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::tensor::{DType, Device, Tensor};
use common::{
    EPS, Noise, any_matrix, cases, defect, dmatrix, dvector, max_abs, relative, single, tensor,
};
use nalgebra::DMatrix;
use proptest::prelude::*;
use soda_linalg::{LinalgError, Svd};

/// Backward error 50 eps √max(m, n), orthogonality 80 eps √k, descending, and the sign rule.
fn check(name: &str, a: &DMatrix<f64>, svd: &Svd, eps: f64) {
    let (m, n) = a.shape();
    let (u, s, vt) = (dmatrix(&svd.u), dvector(&svd.s), dmatrix(&svd.vt));
    let k = m.min(n);
    assert_eq!((u.shape(), s.len(), vt.shape()), ((m, k), k, (k, n)), "{name}");

    let scaled = DMatrix::from_fn(m, k, |i, j| u[(i, j)] * s[j]);
    let bound = 50.0 * eps * (m.max(n) as f64).sqrt();
    // What f32 can hold of subnormal singular values is absolute.
    let floor = if max_abs(a) < 1e-37 { 1e-4 } else { 0.0 };
    assert!(relative(a, &(scaled * &vt)) <= bound + floor, "{name}: backward error");
    let bound = 80.0 * eps * (k as f64).sqrt();
    assert!(defect(&u) <= bound && defect(&vt) <= bound, "{name}: {} {}", defect(&u), defect(&vt));

    assert!(s.iter().all(|s| *s >= 0.0) && s.is_sorted_by(|a, b| a >= b), "{name}: {s:?}");
    for column in u.column_iter() {
        assert!(column[column.icamax()] >= 0.0, "{name}: sign rule");
    }
}

#[test]
fn laws_hold_on_every_case() {
    for (name, a) in cases() {
        check(name, &a, &Svd::thin(&single(&a)).unwrap(), EPS);
    }
}

#[test]
fn laws_hold_in_products() {
    let matrices: Vec<Tensor<2>> = cases().iter().map(|(_, a)| single(a)).collect();
    for ((name, a), svd) in cases().iter().zip(Svd::thin_batch_in_products(&matrices)) {
        check(name, a, &svd.unwrap(), EPS);
    }
    assert!(Svd::thin_batch_in_products(&[]).is_empty());
}

#[test]
fn a_batch_is_its_members() {
    let matrices: Vec<Tensor<2>> = cases().iter().map(|(_, a)| single(a)).collect();
    for ((name, a), svd) in cases().iter().zip(Svd::thin_batch(&matrices)) {
        check(name, a, &svd.unwrap(), EPS);
    }
    assert!(Svd::thin_batch(&[]).is_empty());
}

/// Factors rounded once are those of the same matrix in f64, rounded.
#[test]
fn a_batch_may_be_rounded_once() {
    if !Device::default().supports_dtype(DType::F64) {
        return;
    }
    let matrices: Vec<Tensor<2>> = cases().iter().map(|(_, a)| single(a)).collect();
    let double: Vec<_> = matrices.iter().map(|a| a.clone().cast(DType::F64)).collect();
    let found = Svd::thin_batch_rounded(&matrices);
    for (((name, a), svd), double) in cases().iter().zip(found).zip(Svd::thin_batch(&double)) {
        let (svd, double) = (svd.unwrap(), double.unwrap());
        check(name, a, &svd, EPS);
        let equal = |a: Tensor<2>, b: Tensor<2>| a.to_data() == b.cast(DType::F32).to_data();
        assert!(equal(svd.u, double.u) && equal(svd.vt, double.vt), "{name}");
        assert!(equal(svd.s.unsqueeze(), double.s.unsqueeze()), "{name}");
    }
    let huge = Tensor::<2>::full([4, 4], f32::MAX, &Device::default());
    let error = Svd::thin_batch_rounded(&[huge]).remove(0);
    assert!(matches!(error, Err(LinalgError::Overflow { rows: 4, cols: 4 })));
    assert!(Svd::thin_batch_rounded(&[]).is_empty());
}

#[test]
fn singular_values_agree_with_nalgebra() {
    let a = Noise::new(2).matrix(48, 33).map(|entry| f64::from(entry as f32));
    let ours = dvector(&Svd::thin(&single(&a)).unwrap().s);
    let theirs = a.singular_values();
    for (ours, theirs) in ours.iter().zip(theirs.iter()) {
        assert!((ours - theirs).abs() <= 20.0 * EPS * theirs.max(1.0), "{ours} {theirs}");
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
    check("f64", &a, &svd, f64::EPSILON);
}

#[test]
fn half_precision_is_decomposed_in_single() {
    if !Device::default().supports_dtype(DType::BF16) {
        return;
    }
    let a = single(&Noise::new(4).matrix(20, 12)).cast(DType::BF16);
    let svd = Svd::thin(&a).unwrap();
    assert_eq!(svd.u.dtype(), DType::F32);
    check("bf16", &dmatrix(&a.cast(DType::F32)), &svd, EPS);
}

#[test]
fn a_tensor_on_the_tape_is_a_constant() {
    let device = Device::default().autodiff();
    let a = Tensor::<2>::ones([3, 2], &device).require_grad();
    assert!(!Svd::thin(&a).unwrap().u.is_autodiff());
}

#[test]
fn bad_input_is_named() {
    let mut a = Noise::new(5).matrix(4, 3);
    a[(2, 1)] = f64::NAN;
    let error = Svd::thin(&single(&a)).unwrap_err();
    assert!(matches!(error, LinalgError::NotFinite { row: 2, col: 1, rows: 4, cols: 3, .. }));
    let empty = Tensor::<2>::zeros([0, 3], &Device::default());
    assert!(matches!(Svd::thin(&empty), Err(LinalgError::Empty { rows: 0, cols: 3 })));
    let huge = Tensor::<2>::full([4, 4], f32::MAX, &Device::default());
    assert!(matches!(Svd::thin(&huge), Err(LinalgError::Overflow { .. })));

    let batch = Svd::thin_batch(&[single(&a), single(&Noise::new(6).matrix(2, 2)), empty]);
    assert_eq!(batch.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false]);
}

proptest! {
    #[test]
    fn laws_hold_on_any_matrix(a in any_matrix()) {
        check("any", &a, &Svd::thin(&single(&a)).unwrap(), EPS);
        let products = Svd::thin_batch_in_products(&[single(&a)]).remove(0);
        check("in products", &a, &products.unwrap(), EPS);
    }
}
