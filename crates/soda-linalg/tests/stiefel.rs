//! The geometry: tangents, retractions and their order, geodesics, logarithms, distances.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::tensor::{DType, Device, Tensor};
use common::{
    Noise, dmatrix, from_batch, max_abs, orthogonality_error, relative_error, tensor, tensor_f32,
    to_batch,
};
use nalgebra::DMatrix;
use soda_linalg::stiefel::{self, Retraction};
use soda_linalg::{LinalgError, rotation_power};

const SHAPES: [(usize, usize); 5] = [(6, 6), (12, 4), (4, 12), (2, 2), (7, 1)];

/// A point and a tangent at it of unit norm, in f64.
fn point(noise: &mut Noise, rows: usize, cols: usize) -> (DMatrix<f64>, DMatrix<f64>) {
    let x = noise.orthonormal(rows, cols);
    let u = noise.matrix(rows, cols);
    let u = if rows < cols {
        let inner = &u * x.transpose();
        &u - (&inner + inner.transpose()) * 0.5 * &x
    } else {
        let inner = x.transpose() * &u;
        &u - &x * (&inner + inner.transpose()) * 0.5
    };
    let norm = u.norm();
    (x, u / norm)
}

#[test]
fn project_tangent_is_a_projection_onto_tangents() {
    for (rows, cols) in SHAPES {
        let mut noise = Noise::new(1);
        let (x, ambient) =
            (tensor_f32(&noise.orthonormal(rows, cols)), tensor_f32(&noise.matrix(rows, cols)));
        let u = stiefel::project_tangent(x.clone(), ambient);
        let (xm, um) = (dmatrix(&x), dmatrix(&u));
        let inner = if rows < cols { &um * xm.transpose() } else { xm.transpose() * &um };
        assert!(max_abs(&(&inner + inner.transpose())) < 1e-5, "{rows} x {cols}");
        assert!(
            relative_error(&um, &dmatrix(&stiefel::project_tangent(x, u))) < 1e-5,
            "{rows} x {cols}"
        );
    }
}

#[test]
fn random_points_are_on_the_manifold() {
    let device = Device::default();
    for (rows, cols) in [(2, 2), (64, 64), (96, 7), (7, 96)] {
        let x = stiefel::random_point([5, rows, cols], &device);
        assert!(stiefel::orthogonality_error(&x).unwrap() < 2e-6, "{rows} x {cols}");
        // Two points of a circle may be close. Five close points would be one point repeated.
        let points = from_batch(&x);
        let spread = soda_testing::max_abs(points.iter().map(|point| (&points[0] - point).norm()));
        assert!(spread > 0.1, "{rows} x {cols}: {spread}");
    }
    assert_eq!(stiefel::random_point([0, 4], &device).dims(), [0, 4]);
}

/// The slope of `log |R(tU) - geodesic(tU)|` over `log t`, which is the order plus one. In f64, because the
/// third power of a small step is below f32 rounding.
fn slope(retraction: Retraction, rows: usize, cols: usize) -> f64 {
    let (x, u) = point(&mut Noise::new(2), rows, cols);
    let (x, u) = (tensor(&x, DType::F64), tensor(&u, DType::F64));
    let error = |t: f64| {
        let end = retraction.apply(x.clone(), u.clone().mul_scalar(t)).unwrap();
        (dmatrix(&end) - dmatrix(&stiefel::geodesic(x.clone(), u.clone(), t))).norm()
    };
    let (near, far): (f64, f64) = (0.01, 0.1);
    (error(far) / error(near)).ln() / (far / near).ln()
}

#[test]
fn retractions_have_their_order() {
    if !Device::default().supports_dtype(DType::F64) {
        return;
    }
    for (rows, cols) in [(6, 6), (12, 4), (4, 12)] {
        let qr = slope(Retraction::Qr, rows, cols);
        assert!((qr - 2.0).abs() < 0.15, "QR, {rows} x {cols}: {qr}");
        let cayley = slope(Retraction::Cayley, rows, cols);
        assert!((cayley - 3.0).abs() < 0.15, "Cayley, {rows} x {cols}: {cayley}");
    }
    let square = slope(Retraction::Polar, 6, 6);
    assert!((square - 3.0).abs() < 0.15, "polar, square: {square}");
    let tall = slope(Retraction::Polar, 12, 4);
    assert!(tall > 1.85, "polar, tall: {tall}");
}

/// The geodesic is the reference of the retractions. Its own test: its first derivative is `U`.
#[test]
fn geodesics_start_along_the_tangent() {
    if !Device::default().supports_dtype(DType::F64) {
        return;
    }
    for (rows, cols) in SHAPES {
        let (x, u) = point(&mut Noise::new(3), rows, cols);
        let error = |t: f64| {
            let end = stiefel::geodesic(tensor(&x, DType::F64), tensor(&u, DType::F64), t);
            (dmatrix(&end) - (&x + &u * t)).norm()
        };
        let slope = (error(1e-2) / error(1e-3)).log10();
        assert!((slope - 2.0).abs() < 0.1, "{rows} x {cols}: {slope}");
    }
}

#[test]
fn retractions_land_on_the_manifold() {
    let retractions =
        [Retraction::Polar, Retraction::Qr, Retraction::Cayley, Retraction::Exponential];
    for (rows, cols) in SHAPES {
        for size in [1e-4, 0.1, 1.0, 10.0] {
            let mut noise = Noise::new(4);
            let (x, u): (Vec<_>, Vec<_>) = (0..3).map(|_| point(&mut noise, rows, cols)).unzip();
            let (x, u) = (to_batch(&x, DType::F32), to_batch(&u, DType::F32).mul_scalar(size));
            for retraction in retractions {
                let y = retraction.apply(x.clone(), u.clone()).unwrap();
                let distance = stiefel::orthogonality_error(&y).unwrap();
                assert!(distance < 5e-6, "{retraction:?}, {rows} x {cols}, {size}: {distance:e}");
            }
        }
    }
}

#[test]
fn the_logarithm_inverts_the_geodesic() {
    if !Device::default().supports_dtype(DType::F64) {
        return;
    }
    for (rows, cols) in SHAPES {
        for length in [1e-3, 0.5, 1.5] {
            let mut noise = Noise::new(5);
            let (x, u): (Vec<_>, Vec<_>) = (0..3).map(|_| point(&mut noise, rows, cols)).unzip();
            let u: Vec<_> = u.into_iter().map(|u| u * length).collect();
            let (x, u) = (to_batch(&x, DType::F64), to_batch(&u, DType::F64));
            let y = stiefel::geodesic(x.clone(), u.clone(), 1.0);
            let back = stiefel::logarithm(&x, &y).unwrap();
            for (u, back) in from_batch(&u).iter().zip(from_batch(&back)) {
                assert!(
                    relative_error(u, &back) < 1e-9,
                    "{rows} x {cols}, {length}: {}",
                    relative_error(u, &back)
                );
            }
            let forth = stiefel::distance(&x, &y).unwrap();
            let back = stiefel::distance(&y, &x).unwrap();
            for ((forth, back), u) in forth.iter().zip(&back).zip(from_batch(&u)) {
                assert!((forth - back).abs() < 1e-9, "symmetry");
                // The canonical norm weighs the part along X by a half.
                assert!(*forth <= u.norm() + 1e-9 && *forth >= u.norm() / 2f64.sqrt() - 1e-9);
            }
        }
    }
}

#[test]
fn powers_follow_the_geodesic() {
    let q = Noise::new(6).orthonormal(6, 6);
    let q = if q.determinant() < 0.0 {
        q * DMatrix::from_diagonal(&[-1.0, 1.0, 1.0, 1.0, 1.0, 1.0].to_vec().into())
    } else {
        q
    };
    let power = |t: f64| dmatrix(&rotation_power(&tensor_f32(&q), t).unwrap());
    assert!(max_abs(&(power(0.0) - DMatrix::identity(6, 6))) < 1e-6);
    assert!(max_abs(&(power(1.0) - &q)) < 1e-6);
    assert!(max_abs(&(power(0.3) * power(0.7) - &q)) < 2e-6);
    assert!(max_abs(&(power(-1.0) - q.transpose())) < 2e-6);
    assert!(orthogonality_error(&power(0.37)) < 2e-6);
    assert!(max_abs(&(power(2.5) - power(0.5) * &q * &q)) < 4e-6);
}

/// A NaN in any column of any matrix of a batch makes the error NaN, and the check fails.
#[test]
fn a_nan_is_never_orthonormal() {
    for at in [0, 5, 8] {
        let mut x = DMatrix::identity(3, 3);
        x[at] = f64::NAN;
        let batch = [DMatrix::identity(3, 3), x, DMatrix::identity(3, 3)];
        let batch = to_batch(&batch, DType::F32);
        assert!(stiefel::orthogonality_error(&batch).unwrap().is_nan(), "entry {at}");
        assert!(stiefel::check_orthonormal(&batch, 1e9).is_err(), "entry {at}");
    }
}

#[test]
fn invalid_input_is_an_error() {
    let device = Device::default();
    let x = Tensor::<2>::eye(3, &device);
    let reflection = x.clone() * Tensor::<2>::from_data([[-1.0, 1.0, 1.0]], &device);
    assert!(matches!(stiefel::logarithm(&x, &reflection), Err(LinalgError::NoLogarithm { n: 3 })));
    assert!(matches!(rotation_power(&reflection, 0.5), Err(LinalgError::NoLogarithm { n: 3 })));
    let other = Tensor::<2>::eye(2, &device);
    assert!(matches!(stiefel::distance(&x, &other), Err(LinalgError::ShapeMismatch { .. })));
    let far = x.clone().mul_scalar(1.1);
    assert!(matches!(
        stiefel::check_orthonormal(&far, 1e-5),
        Err(LinalgError::NotOrthonormal { rows: 3, .. })
    ));
    assert!(stiefel::check_orthonormal(&x, 1e-5).is_ok());
    let wide = Tensor::<2>::zeros([2, 3], &device);
    assert!(matches!(rotation_power(&wide, 0.5), Err(LinalgError::NotSquare { .. })));
}
