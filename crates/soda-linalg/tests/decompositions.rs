//! The laws of QR, LQ, the polar factor and the symmetric eigendecomposition.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::tensor::{DType, Device, Tensor};
use common::{
    EPS, Noise, any_matrix, cases, dmatrix, entries, max_abs, orthogonality_error, relative_error,
    tensor, tensor_f32,
};
use nalgebra::{DMatrix, SymmetricEigen as NalgebraEigen};
use proptest::prelude::*;
use soda_linalg::{LinalgError, Lq, Polar, Qr, SymmetricEigen};

/// The additional backward error of a subnormal matrix, whose rounding errors in f32 are absolute.
fn floor(a: &DMatrix<f64>) -> f64 {
    if max_abs(a) < 1e-37 { 1e-4 } else { 0.0 }
}

/// The bounds on the backward error and on the orthogonality error.
fn bounds(a: &DMatrix<f64>, eps: f64) -> (f64, f64) {
    let (m, n) = a.shape();
    let (long, short) = (m.max(n) as f64, m.min(n) as f64);
    (50.0 * eps * long.sqrt() + floor(a), 80.0 * eps * short.sqrt())
}

fn check_qr(name: &str, a: &DMatrix<f64>, dtype: DType, eps: f64) {
    let (backward, orthogonality) = bounds(a, eps);
    let qr = Qr::thin(&tensor(a, dtype)).unwrap();
    let (q, r) = (dmatrix(&qr.q), dmatrix(&qr.r));
    assert!(relative_error(a, &(&q * &r)) <= backward, "{name}: QR");
    assert!(orthogonality_error(&q) <= orthogonality, "{name}: Q {}", orthogonality_error(&q));
    assert_eq!(r, r.upper_triangle(), "{name}: R");
    assert!((0..q.ncols()).all(|i| r[(i, i)] >= 0.0), "{name}: diagonal of R");

    let lq = Lq::thin(&tensor(a, dtype)).unwrap();
    let (l, q) = (dmatrix(&lq.l), dmatrix(&lq.q));
    assert!(relative_error(a, &(&l * &q)) <= backward, "{name}: LQ");
    assert!(orthogonality_error(&q) <= orthogonality, "{name}: Q of LQ");
    assert_eq!(l, l.lower_triangle(), "{name}: L");
    assert!((0..q.nrows()).all(|i| l[(i, i)] >= 0.0), "{name}: diagonal of L");
}

fn check_polar(name: &str, a: &DMatrix<f64>) {
    let (backward, orthogonality) = bounds(a, EPS);
    let polar = Polar::new(&tensor_f32(a)).unwrap();
    let (q, p) = (dmatrix(&polar.q), dmatrix(&polar.p));
    let product = if a.nrows() < a.ncols() { &p * &q } else { &q * &p };
    assert!(
        relative_error(a, &product) <= backward,
        "{name}: polar {}",
        relative_error(a, &product)
    );
    assert!(orthogonality_error(&q) <= orthogonality, "{name}: polar factor");
    assert!(relative_error(&p, &p.transpose()) <= 4.0 * EPS + floor(a), "{name}: symmetric");
}

fn check_eigen(name: &str, a: &DMatrix<f64>) {
    let a = ((a + a.transpose()) * 0.5).map(|entry| f64::from(entry as f32));
    let eigen = SymmetricEigen::new(&tensor_f32(&a)).unwrap();
    let (values, vectors) = (entries(&eigen.eigenvalues), dmatrix(&eigen.eigenvectors));
    let (backward, orthogonality) = bounds(&a, EPS);
    let product = &vectors * DMatrix::from_diagonal(&values.clone().into()) * vectors.transpose();
    assert!(
        relative_error(&a, &product) <= backward,
        "{name}: eigen {}",
        relative_error(&a, &product)
    );
    assert!(orthogonality_error(&vectors) <= orthogonality, "{name}: eigenvectors");
    assert!(values.is_sorted(), "{name}");
    let scale = max_abs(&a).max(f64::MIN_POSITIVE);
    let mut expected = NalgebraEigen::new(&a / scale).eigenvalues.as_slice().to_vec();
    expected.sort_by(f64::total_cmp);
    let size = soda_testing::max_abs(expected.iter().copied());
    for (value, expected) in values.iter().zip(expected) {
        assert!((value / scale - expected).abs() <= (backward + 20.0 * EPS) * size, "{name}");
    }
}

#[test]
fn all_decompositions_satisfy_the_laws() {
    for (name, a) in cases() {
        check_qr(name, &a, DType::F32, EPS);
        check_polar(name, &a);
        let n = a.nrows().min(a.ncols()).min(64);
        check_eigen(name, &a.view((0, 0), (n, n)).into_owned());
    }
}

#[test]
fn double_precision_is_kept() {
    if Device::default().supports_dtype(DType::F64) {
        check_qr("f64", &Noise::new(1).matrix(40, 30), DType::F64, f64::EPSILON);
    }
}

#[test]
fn a_batch_decomposes_each_matrix() {
    let mut noise = Noise::new(4);
    let mut matrices: Vec<_> = (3..40).map(|n| tensor_f32(&noise.matrix(n, 43 - n))).collect();
    matrices[5] = matrices[5].clone().mul_scalar(f32::NAN);
    for (i, (a, qr)) in matrices.iter().zip(Qr::thin_batch(&matrices)).enumerate() {
        match qr {
            Ok(qr) => assert!(relative_error(&dmatrix(a), &dmatrix(&qr.recompose())) < 1e-5),
            Err(error) => assert!(i == 5, "{error}"),
        }
    }
}

#[test]
fn qr_agrees_with_nalgebra() {
    let a = Noise::new(2).matrix(20, 12).map(|entry| f64::from(entry as f32));
    let (q, r) = a.clone().qr().unpack();
    let signs = DMatrix::from_diagonal(&r.diagonal().map(f64::signum));
    let qr = Qr::thin(&tensor_f32(&a)).unwrap();
    assert!(relative_error(&(q * &signs), &dmatrix(&qr.q)) < 1e-5);
    assert!(relative_error(&(&signs * r), &dmatrix(&qr.r)) < 1e-5);
}

#[test]
fn invalid_input_is_an_error() {
    let device = Device::default();
    let empty = Tensor::<2>::zeros([3, 0], &device);
    assert!(matches!(Qr::thin(&empty), Err(LinalgError::Empty { rows: 3, cols: 0 })));
    assert!(matches!(Lq::thin(&empty), Err(LinalgError::Empty { .. })));
    assert!(matches!(Polar::new(&empty), Err(LinalgError::Empty { .. })));
    let infinite = Tensor::<2>::full([2, 2], f32::INFINITY, &device);
    assert!(matches!(Qr::thin(&infinite), Err(LinalgError::NotFinite { row: 0, col: 0, .. })));
    assert!(matches!(SymmetricEigen::new(&infinite), Err(LinalgError::NotFinite { .. })));
    let wide = Tensor::<2>::zeros([2, 3], &device);
    assert!(matches!(SymmetricEigen::new(&wide), Err(LinalgError::NotSquare { rows: 2, cols: 3 })));
    let skew = Tensor::<2>::from_data([[0.0, 1.0], [-1.0, 0.0]], &device);
    assert!(matches!(
        SymmetricEigen::new(&skew),
        Err(LinalgError::NotSymmetric { row: 1, col: 0, n: 2 })
    ));
}

proptest! {
    #[test]
    fn any_matrix_satisfies_the_laws(a in any_matrix()) {
        check_qr("any", &a, DType::F32, EPS);
        check_polar("any", &a);
        let n = a.nrows().min(a.ncols());
        check_eigen("any", &a.view((0, 0), (n, n)).into_owned());
    }
}
