//! The optimizers: on the manifold after 10,000 steps, downhill, saved and restored, and against the paper's
//! formulas.
//!
//! On a GPU the number of steps is 1,000, because the launches of more take minutes. Stiefel Adam and SGD are
//! compared step by step with the formulas of Kong, Wang and Tao in f64 (nalgebra).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use burn::optim::{AdamWConfig, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{DType, Device, Tensor};
use common::{Noise, from_batch, max_abs, orthogonality_error, tensor_f32, to_batch};
use nalgebra::DMatrix;
use soda_kernels::has_vendor_blas;
use soda_linalg::optim::{
    ExponentialMap, Metric, Pogo, PogoConfig, RiemannianAdam, RiemannianAdamConfig, RiemannianSgd,
    RiemannianSgdConfig, StiefelAdam, StiefelAdamConfig, StiefelSgd, StiefelSgdConfig,
};
use soda_linalg::stiefel::{self, Retraction};

const SHAPES: [(usize, usize); 8] =
    [(2, 2), (4, 4), (20, 20), (96, 96), (20, 5), (5, 20), (96, 8), (7, 1)];

/// Takes many steps under gradients that never vanish, and asserts that the parameter is on the manifold.
fn assert_stays(name: &str, optimizer: impl Optimizer, lr: f64) {
    assert_stays_on(&SHAPES, name, optimizer, lr);
}

/// [`assert_stays`] for the given shapes.
fn assert_stays_on(shapes: &[(usize, usize)], name: &str, optimizer: impl Optimizer, lr: f64) {
    for &(rows, cols) in shapes {
        let mut noise = Noise::new((rows * cols) as u64);
        let mut x = to_batch(&[noise.orthonormal(rows, cols)], DType::F32);
        let grads: Vec<_> =
            (0..7).map(|_| to_batch(&[noise.matrix(rows, cols)], DType::F32)).collect();
        let mut state = None;
        let steps = if has_vendor_blas(&x) { 1_000 } else { 10_000 };
        for step in 0..steps {
            (x, state) = optimizer.step(lr, x, grads[step % grads.len()].clone(), state);
        }
        let error = stiefel::orthogonality_error(&x).unwrap();
        assert!(error <= 2e-6, "{name}, {rows} x {cols}: {error:e}");
    }
}

#[test]
fn stiefel_adam_stays_on_the_manifold() {
    assert_stays("adam", StiefelAdam::new(&StiefelAdamConfig::new()), 1e-2);
}

#[test]
fn stiefel_sgd_stays_on_the_manifold() {
    assert_stays("sgd", StiefelSgd::new(&StiefelSgdConfig::new()), 1e-2);
}

#[test]
fn riemannian_sgd_stays_on_the_manifold() {
    assert_stays("riemannian sgd", RiemannianSgd::new(&RiemannianSgdConfig::new()), 1e-2);
}

#[test]
fn riemannian_adam_stays_on_the_manifold() {
    assert_stays("riemannian adam", RiemannianAdam::new(&RiemannianAdamConfig::new()), 1e-2);
}

#[test]
fn pogo_stays_on_the_manifold() {
    assert_stays("pogo", Pogo::new(&PogoConfig::new()), 1e-2);
}

/// Square, tall and wide shapes, small enough for every combination of metric and map.
const SMALL: [(usize, usize); 3] = [(4, 4), (5, 2), (2, 5)];
const EXPONENTIAL_MAPS: [ExponentialMap; 3] =
    [ExponentialMap::Euler, ExponentialMap::Cayley, ExponentialMap::Exact];
const METRICS: [Metric; 2] = [Metric::Canonical, Metric::Euclidean];
const RETRACTIONS: [Retraction; 4] =
    [Retraction::Polar, Retraction::Qr, Retraction::Cayley, Retraction::Exponential];

#[test]
fn stiefel_adam_stays_with_every_metric_and_map() {
    for (metric, exponential) in METRICS.into_iter().flat_map(|m| EXPONENTIAL_MAPS.map(|e| (m, e)))
    {
        let config = StiefelAdamConfig::new().with_metric(metric).with_exponential(exponential);
        let name = format!("adam {metric:?} {exponential:?}");
        assert_stays_on(&SMALL, &name, StiefelAdam::new(&config), 1e-2);
    }
}

#[test]
fn stiefel_sgd_stays_with_every_metric_and_map() {
    for (metric, exponential) in METRICS.into_iter().flat_map(|m| EXPONENTIAL_MAPS.map(|e| (m, e)))
    {
        let config = StiefelSgdConfig::new().with_metric(metric).with_exponential(exponential);
        let name = format!("sgd {metric:?} {exponential:?}");
        assert_stays_on(&SMALL, &name, StiefelSgd::new(&config), 1e-2);
    }
}

#[test]
fn riemannian_adam_stays_with_every_retraction() {
    for retraction in RETRACTIONS {
        let config = RiemannianAdamConfig::new().with_retraction(retraction);
        let name = format!("riemannian adam {retraction:?}");
        assert_stays_on(&SMALL, &name, RiemannianAdam::new(&config), 1e-2);
    }
}

#[test]
fn riemannian_sgd_stays_with_every_retraction() {
    for retraction in RETRACTIONS {
        let config = RiemannianSgdConfig::new().with_retraction(retraction);
        let name = format!("riemannian sgd {retraction:?}");
        assert_stays_on(&SMALL, &name, RiemannianSgd::new(&config), 1e-2);
    }
}

#[test]
fn a_large_step_stays_on_the_manifold() {
    for (rows, cols) in SHAPES {
        let mut noise = Noise::new(1);
        let mut x = to_batch(&[noise.orthonormal(rows, cols)], DType::F32);
        let (adam, mut state) = (StiefelAdam::new(&StiefelAdamConfig::new()), None);
        for step in 0..20 {
            let grad = to_batch(&[noise.matrix(rows, cols)], DType::F32);
            // At lr = 1 the normal part V diverges, in exact arithmetic too.
            let lr = if rows == cols { 1.0 } else { 0.1 };
            (x, state) = adam.step(lr, x, grad, state);
            let error = stiefel::orthogonality_error(&x).unwrap();
            assert!(error <= 2e-6, "{rows} x {cols}, step {step}: {error:e}");
        }
    }
}

/// The negative control: an optimizer without the constraint leaves the manifold.
#[test]
fn adamw_leaves_the_manifold() {
    let mut noise = Noise::new(3);
    let mut x = to_batch(&[noise.orthonormal(8, 8)], DType::F32);
    let target = to_batch(&[noise.matrix(8, 8)], DType::F32);
    let (optimizer, mut state) = (AdamWConfig::new().build(), None);
    for _ in 0..100 {
        let grad = x.clone() - target.clone();
        (x, state) = optimizer.step(1e-2, x, grad, state);
    }
    assert!(stiefel::orthogonality_error(&x).unwrap() > 0.1);
    assert!(stiefel::check_orthonormal(&x, 1e-3).is_err());
}

/// Asserts that `|X - T|²` decreases for a random `T`.
fn assert_descends(name: &str, optimizer: impl Optimizer, lr: f64) {
    for (rows, cols) in SHAPES {
        let mut noise = Noise::new(rows as u64);
        let start: Vec<_> = (0..3).map(|_| noise.orthonormal(rows, cols)).collect();
        // The target is a rotation away: a determinant of -1 would be out of reach.
        let mut rotated = |x: &DMatrix<f64>| {
            let skew = noise.matrix(rows, rows) * (0.3 / (rows as f64).sqrt());
            (&skew - skew.transpose()).exp() * x
        };
        let target: Vec<_> = start.iter().map(&mut rotated).collect();
        let (mut x, target) = (to_batch(&start, DType::F32), to_batch(&target, DType::F32));
        let distance = |x: &Tensor<3>| {
            let pairs = from_batch(x).into_iter().zip(from_batch(&target));
            pairs.map(|(x, t)| (x - t).norm_squared()).sum::<f64>()
        };
        let (before, mut state) = (distance(&x), None);
        for _ in 0..400 {
            let grad = x.clone() - target.clone();
            (x, state) = optimizer.step(lr, x, grad, state);
        }
        let after = distance(&x);
        assert!(after < 0.95 * before, "{name}, {rows} x {cols}: {before} to {after}");
    }
}

#[test]
fn all_optimizers_descend() {
    for metric in METRICS {
        for exponential in EXPONENTIAL_MAPS {
            let name = format!("{metric:?} {exponential:?}");
            let sgd = StiefelSgdConfig::new().with_metric(metric).with_exponential(exponential);
            assert_descends(&name, StiefelSgd::new(&sgd), 1e-2);
            let adam = StiefelAdamConfig::new().with_metric(metric).with_exponential(exponential);
            assert_descends(&name, StiefelAdam::new(&adam), 1e-2);
        }
    }
    for retraction in RETRACTIONS {
        let name = format!("{retraction:?}");
        let sgd = RiemannianSgdConfig::new().with_retraction(retraction);
        assert_descends(&name, RiemannianSgd::new(&sgd), 1e-2);
        let adam = RiemannianAdamConfig::new().with_retraction(retraction);
        assert_descends(&name, RiemannianAdam::new(&adam), 1e-2);
    }
    assert_descends("pogo", Pogo::new(&PogoConfig::new()), 1e-2);
}

fn a(metric: Metric) -> f64 {
    match metric {
        Metric::Canonical => 0.5,
        Metric::Euclidean => 0.0,
    }
}

fn polar_factor(x: DMatrix<f64>) -> DMatrix<f64> {
    let svd = x.svd(true, true);
    svd.u.unwrap() * svd.v_t.unwrap()
}

/// The map `E` of `Z`, written out.
fn exponential_map(exponential: ExponentialMap, z: &DMatrix<f64>) -> DMatrix<f64> {
    let identity = DMatrix::identity(z.nrows(), z.nrows());
    match exponential {
        ExponentialMap::Euler => identity + z,
        ExponentialMap::Cayley => {
            (&identity - z / 2.0).try_inverse().unwrap() * (&identity + z / 2.0)
        }
        ExponentialMap::Exact => z.exp(),
    }
}

/// Stiefel Adam by the formulas of the paper in f64, for a tall or square `x`.
fn adam_reference(
    mut x: DMatrix<f64>,
    grads: &[DMatrix<f64>],
    lr: f64,
    config: &StiefelAdamConfig,
) -> DMatrix<f64> {
    let (n, m) = x.shape();
    let (a, b1, b2, eps) = (a(config.metric), config.beta_1, config.beta_2, config.epsilon);
    let b = a / (a - 1.0);
    let (mut y, mut py) = (DMatrix::zeros(m, m), DMatrix::zeros(m, m));
    let (mut v, mut pv) = (DMatrix::zeros(n, m), DMatrix::zeros(n, m));
    for (t, g) in (1..).zip(grads) {
        let xg = x.transpose() * g;
        let gy = (&xg - xg.transpose()) * ((1.0 - b) / 2.0);
        let gv = g - &x * &xg;
        pv = pv * b2 + gv.map(|e| e * e) * (1.0 - b2);
        y = y * b1 - &gy * (1.0 - b1);
        py = py * b2 + gy.map(|e| e * e) * (1.0 - b2);
        let (c1, c2) = (1.0 - b1.powi(t), 1.0 - b2.powi(t));
        let z = y.zip_map(&py, |y, p: f64| lr / c1 * y / ((p / c2).sqrt() + eps));
        x = &x * exponential_map(config.exponential, &z);
        if n > m {
            v = &v * b1 - &v * &y * ((3.0 * a - 2.0) / 2.0 * lr) - gv * (1.0 - b1);
            let w = v.zip_map(&pv, |v, p: f64| v / ((p / c2).sqrt() + eps));
            let gram = x.transpose() * &x;
            let w = &w - &x * gram.clone().try_inverse().unwrap() * x.transpose() * &w;
            let p = &x * w.transpose() * &v;
            x += &w * gram * lr;
            v -= p * lr;
        }
        x = polar_factor(x);
    }
    x
}

/// Stiefel SGD by the formulas of the paper in f64, for a tall or square `x`.
fn sgd_reference(
    mut x: DMatrix<f64>,
    grads: &[DMatrix<f64>],
    lr: f64,
    config: &StiefelSgdConfig,
) -> DMatrix<f64> {
    let (n, m) = x.shape();
    let (a, mu, d) = (a(config.metric), config.momentum, config.dampening);
    let b = a / (a - 1.0);
    let (mut y, mut v) = (DMatrix::zeros(m, m), DMatrix::zeros(n, m));
    for g in grads {
        let xg = x.transpose() * g;
        let gy = (&xg - xg.transpose()) * ((1.0 - b) / 2.0);
        let gv = g - &x * &xg;
        let normal_weight = if mu == 0.0 { 0.0 } else { (3.0 * a - 2.0) / 2.0 * lr };
        v = &v * mu - &v * &y * normal_weight - gv * (1.0 - d);
        y = y * mu - gy * (1.0 - d);
        x = &x * exponential_map(config.exponential, &(&y * lr));
        if n > m {
            let p = &x * v.transpose() * &v;
            let gram = x.transpose() * &x;
            x += &v * gram * lr;
            v -= p * lr;
        }
        x = polar_factor(x);
    }
    x
}

/// The largest difference of the optimizer and a reference after 20 steps, for a tall, square or wide `x`.
fn error_against(
    optimizer: &impl Optimizer,
    lr: f64,
    rows: usize,
    cols: usize,
    reference: impl Fn(DMatrix<f64>, &[DMatrix<f64>]) -> DMatrix<f64>,
) -> f64 {
    let mut noise = Noise::new((rows + cols) as u64);
    let start = noise.orthonormal(rows, cols);
    let grads: Vec<_> = (0..20).map(|_| noise.matrix(rows, cols)).collect();
    let (mut x, mut state) = (tensor_f32(&start), None);
    for grad in &grads {
        (x, state) = optimizer.step(lr, x, tensor_f32(grad), state);
    }
    let expected = if rows < cols {
        let grads: Vec<_> = grads.iter().map(|grad| grad.transpose()).collect();
        reference(start.transpose(), &grads).transpose()
    } else {
        reference(start, &grads)
    };
    max_abs(&(common::dmatrix(&x) - expected))
}

#[test]
fn stiefel_adam_and_sgd_follow_the_paper() {
    for metric in METRICS {
        for exponential in EXPONENTIAL_MAPS {
            for (rows, cols) in [(6, 6), (9, 4), (4, 9)] {
                let name = format!("{metric:?} {exponential:?} {rows} x {cols}");
                let config =
                    StiefelAdamConfig::new().with_metric(metric).with_exponential(exponential);
                let reference = |x, grads: &[_]| adam_reference(x, grads, 0.02, &config);
                let error = error_against(&StiefelAdam::new(&config), 0.02, rows, cols, reference);
                assert!(error < 2e-4, "adam, {name}: {error:e}");

                let config = StiefelSgdConfig::new()
                    .with_metric(metric)
                    .with_exponential(exponential)
                    .with_dampening(0.1);
                let reference = |x, grads: &[_]| sgd_reference(x, grads, 0.02, &config);
                let error = error_against(&StiefelSgd::new(&config), 0.02, rows, cols, reference);
                assert!(error < 2e-5, "sgd, {name}: {error:e}");
            }
        }
    }
}

/// Each matrix of a batch steps as it does alone.
#[test]
fn leading_axes_are_a_batch() {
    let mut noise = Noise::new(9);
    let starts: Vec<_> = (0..4).map(|_| noise.orthonormal(6, 6)).collect();
    let grads: Vec<_> = (0..4).map(|_| noise.matrix(6, 6)).collect();
    let adam = StiefelAdam::new(&StiefelAdamConfig::new());
    let (x, g) = (to_batch(&starts, DType::F32), to_batch(&grads, DType::F32));
    let (together, _) = adam.step(1e-2, x.reshape([2, 2, 6, 6]), g.reshape([2, 2, 6, 6]), None);
    let together = from_batch(&together.reshape([4, 6, 6]));
    for ((start, grad), together) in starts.iter().zip(&grads).zip(together) {
        let (alone, _) = adam.step(1e-2, tensor_f32(start), tensor_f32(grad), None);
        assert!(max_abs(&(common::dmatrix(&alone) - together)) < 1e-6);
    }
}

/// Asserts that a step after saving and restoring the state has the same bits.
fn assert_restores<O: Optimizer>(optimizer: &O, rows: usize, cols: usize) {
    let mut noise = Noise::new(11);
    let (mut x, mut state) = (tensor_f32(&noise.orthonormal(rows, cols)), None);
    for _ in 0..3 {
        (x, state) = optimizer.step(1e-2, x, tensor_f32(&noise.matrix(rows, cols)), state);
    }
    let mut sink = StateSink::default();
    state.as_ref().unwrap().state_flatten("p", &mut sink);
    let mut source = StateSource::new(sink.scalars.into_iter().collect());
    sink.tensors.into_iter().for_each(|(name, data)| source.insert_tensor(name, data));
    let restored = O::State::<2>::state_unflatten("p", &mut source, &Device::default());
    assert!(restored.is_some());
    let grad = tensor_f32(&noise.matrix(rows, cols));
    let (continued, _) = optimizer.step(1e-2, x.clone(), grad.clone(), state);
    let (restored, _) = optimizer.step(1e-2, x, grad, restored);
    assert_eq!(continued.to_data(), restored.to_data());
}

#[test]
fn states_are_saved_and_restored() {
    for (rows, cols) in [(5, 5), (7, 3), (3, 7)] {
        assert_restores(&StiefelAdam::new(&StiefelAdamConfig::new()), rows, cols);
        assert_restores(&StiefelSgd::new(&StiefelSgdConfig::new()), rows, cols);
        assert_restores(&RiemannianAdam::new(&RiemannianAdamConfig::new()), rows, cols);
        assert_restores(&RiemannianSgd::new(&RiemannianSgdConfig::new()), rows, cols);
        assert_restores(&Pogo::new(&PogoConfig::new()), rows, cols);
    }
}

/// A vector is a point of the sphere, an empty tensor does not change, and a NaN appears in the parameter.
#[test]
fn vectors_empty_tensors_and_nans_do_not_panic() {
    let adam = StiefelAdam::new(&StiefelAdamConfig::new());
    let device = Device::default();
    let x = Tensor::<1>::from_data([0.6, 0.8], &device);
    let (x, _) = adam.step(0.1, x, Tensor::from_data([1.0, 0.0], &device), None);
    assert!(stiefel::orthogonality_error(&x).unwrap() < 2e-6);
    let empty = Tensor::<2>::zeros([0, 3], &device);
    assert_eq!(adam.step(0.1, empty.clone(), empty, None).0.dims(), [0, 3]);
    let nan = Tensor::<2>::full([3, 3], f32::NAN, &device);
    for retraction in [Retraction::Polar, Retraction::Qr, Retraction::Cayley] {
        let sgd = RiemannianSgd::new(&RiemannianSgdConfig::new().with_retraction(retraction));
        let (x, _) = sgd.step(0.1, Tensor::eye(3, &device), nan.clone(), None);
        assert!(!orthogonality_error(&common::dmatrix(&x)).is_finite());
    }
}
